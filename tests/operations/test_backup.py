"""The recipes of the README: a restored backup answers as the database did."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.embedded import EmbeddedServer, wheel_binaries
from app.main import create_app
from app.migrations import upgrade
from shared.settings import Settings
from tests.declarations import declared
from tests.kit import SECRET_KEY, run_all_tasks
from tests.operations.test_roles import PASSWORDS, create_roles, execute, url_of
from tests.repository_copies import BIN, copy_repository, run
from tests.resilience.pairs import running_primary
from tests.serving import serving_app
from tests.test_readme import NO_CURL, README, commands_of, take_tours

pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]

DATABASE = "tessera"
ADA = {"username": "ada@example.com", "password": "correct horse battery"}
PATHS = ["/users/me", "/items", "/items/export", *declared("load", "PATHS_TIMED").values()]


@dataclass(frozen=True)
class Urls:
    """The URLs of one database for its superuser, its owner and the service."""

    superuser: str
    owner: str
    service: str

    def as_variables(self) -> dict[str, str]:
        return {f"{role.upper()}_URL": url for role, url in vars(self).items()}


def new_database(server: EmbeddedServer) -> Urls:
    """Creates an empty database; the roles are not there yet."""
    asyncio.run(execute(server.url(), f"CREATE DATABASE {DATABASE}"))
    return urls_of(server.url(DATABASE))


def urls_of(superuser: str) -> Urls:
    return Urls(superuser, url_of(superuser, "owner"), url_of(superuser, "service"))


def follow(recipe: str, folder: Path, urls: Urls, text: str = README, **variables: str) -> str:
    """Runs the commands of a recipe as they stand, in a copy of the repository; returns their
    output."""
    path = f"{wheel_binaries()}:{BIN}:{os.environ['PATH']}"
    variables |= urls.as_variables() | PASSWORDS | {"APP_SECRET_KEY": SECRET_KEY, "PATH": path}
    strict = ("bash", "-o", "errexit", "-o", "pipefail", "-c")
    done = run(folder, *strict, commands_of(recipe, text), **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def signed_in(address: str, account: Mapping[str, str] = ADA) -> Iterator[httpx.Client]:
    """Yields a client that has signed in, by default to the account of the tours."""
    with httpx.Client(base_url=address, timeout=30) as client:
        granted = client.post("/auth/token", data={"grant_type": "password", **account})
        assert granted.status_code == 200, granted.text
        client.headers["Authorization"] = f"Bearer {granted.json()['access_token']}"
        yield client


def answers(address: str, account: Mapping[str, str] = ADA) -> dict[str, str]:
    """Signs in to an account, and returns the bodies that it reads."""
    with signed_in(address, account) as client:
        read = {path: client.get(path) for path in PATHS}
    assert {answer.status_code for answer in read.values()} == {200}, read
    bodies = {path: answer.text for path, answer in read.items()}
    assert '"degraded":true' not in str(bodies), bodies
    return bodies


def settings_of(settings: Settings, urls: Urls) -> Settings:
    return settings.model_copy(update={"database_url": urls.service})


async def finish_background_work(settings: Settings) -> None:
    app = create_app(settings, run_tasks=False)
    async with app.router.lifespan_context(app):
        await run_all_tasks(app)


@NO_CURL
def test_a_dump_is_restored_by_an_owner_who_is_no_superuser(
    settings: Settings, tmp_path: Path
) -> None:
    copy_repository(tmp_path)
    with running_primary() as server, running_primary() as other_server:
        before, after = new_database(server), new_database(other_server)
        create_roles(before.superuser)
        upgrade(before.owner)
        used = settings_of(settings, before)
        with serving_app(create_app(used, run_tasks=False)) as address:
            take_tours(address, tmp_path)
            asyncio.run(finish_background_work(used))
            expected = answers(address)
        follow("dump", tmp_path, before)

        assert "wrong" not in follow("restore", tmp_path, after)
        with serving_app(create_app(settings_of(settings, after), run_tasks=False)) as address:
            assert answers(address) == expected
