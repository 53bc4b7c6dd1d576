"""Helpers and fixtures of the tests of accounts: sign-in, races, SQL and mailed tokens."""

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response

from app.main import create_app
from features.users.mail.outbox import body_encryption
from features.users.passwords.tasks import send_password_resets
from features.users.tests.races import Race
from shared.settings import Settings
from tests.kit import PASSWORD, SECRET_KEY, connect, eventually, run_until_idle

EMAIL = "ada@example.com"
MAILED_TOKEN = re.compile(r"^[\w.-]{60,}$", re.MULTILINE)


@dataclass(frozen=True)
class Tokens:
    access: str
    refresh: str

    @property
    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access}"}


def tokens_of(response: Response) -> Tokens:
    assert response.status_code == 200, response.text
    body = response.json()
    return Tokens(body["access_token"], body["refresh_token"])


async def register(client: AsyncClient, email: str = EMAIL, password: str = PASSWORD) -> None:
    response = await client.post("/users", json={"email": email, "password": password})
    assert response.status_code == 201, response.text


async def by_password(
    client: AsyncClient, email: str = EMAIL, password: str = PASSWORD, **more: str
) -> Response:
    form = {"grant_type": "password", "username": email, "password": password, **more}
    return await client.post("/auth/token", data=form)


async def by_refresh(client: AsyncClient, token: str, **more: str) -> Response:
    form = {"grant_type": "refresh_token", "refresh_token": token, **more}
    return await client.post("/auth/token", data=form)


async def status_with(client: AsyncClient, header: dict[str, str]) -> int:
    return (await client.get("/users/me", headers=header)).status_code


def environment(database_url: str) -> dict[str, str]:
    """Environment variables that give a separate process the settings of the tests."""
    return {"APP_ENV": "test", "APP_DATABASE_URL": database_url, "APP_SECRET_KEY": SECRET_KEY}


async def age_of_last_accepted(refused: Callable[[], Awaitable[bool]], what: str) -> float:
    """Sends requests until one is refused. Returns seconds from the call to the last accepted one.

    The time at which a request was sent counts, as a busy machine answers late.
    """
    begun = sent = last_accepted = time.monotonic()

    async def ask() -> bool:
        nonlocal sent, last_accepted
        last_accepted, sent = sent, time.monotonic()
        return await refused()

    await eventually(ask, what)
    return last_accepted - begun


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Raises the timeouts, as tests make requests wait for locks and connections."""
    patient = dict.fromkeys(
        ("database_lock_timeout", "database_statement_timeout", "database_pool_timeout"), 30.0
    )
    return settings.model_copy(update=patient)


@asynccontextmanager
async def running_app(settings: Settings) -> AsyncIterator[tuple[FastAPI, AsyncClient]]:
    """Starts another application with these settings, and yields it with a client."""
    application = create_app(settings, run_tasks=False)
    async with application.router.lifespan_context(application), connect(application) as client:
        yield application, client


@pytest.fixture
async def signed_in(anonymous: AsyncClient) -> Tokens:
    """Registers the account of Ada, and signs it in."""
    await register(anonymous)
    return tokens_of(await by_password(anonymous))


Execute = Callable[..., Awaitable[list[Any]]]


@pytest.fixture
async def execute(database_url: str) -> Execute:
    """Returns a function that runs SQL on a separate connection."""

    async def run(statement: str, *arguments: object) -> list[Any]:
        connection = await asyncpg.connect(database_url)
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    return run


@pytest.fixture
async def race(database_url: str) -> AsyncIterator[Race]:
    """Starts requests one by one, each once the previous one waits for a lock."""
    observer = await asyncpg.connect(database_url)
    yield Race(observer)
    await observer.close()


SentMail = Callable[[str], Awaitable[list[dict[str, Any]]]]


@pytest.fixture
def sent_mail(execute: Execute, settings: Settings) -> SentMail:
    """Reads the outbox: `await sent_mail("ada@example.com")`, oldest first."""
    encryption = body_encryption(settings.secret())

    async def to(recipient: str) -> list[dict[str, Any]]:
        rows = await execute(
            "SELECT * FROM outgoing_mail WHERE recipient = $1 ORDER BY id", recipient
        )
        return [
            {"subject": row["subject"], "body": encryption.decrypt(row["sealed_body"]).decode()}
            for row in rows
        ]

    return to


MailedToken = Callable[[str, str], Awaitable[str]]


@pytest.fixture
def mailed_token(app: FastAPI, sent_mail: SentMail) -> MailedToken:
    """Returns a function that reads the token in the newest mail to an address, by subject."""

    async def newest(email: str, subject: str) -> str:
        await run_until_idle(app, send_password_resets)
        found = [mail for mail in await sent_mail(email) if subject in mail["subject"].lower()]
        token = MAILED_TOKEN.search(found[-1]["body"])
        assert token
        return token.group()

    return newest
