"""State of the users feature that lives as long as the process."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import structlog
from cryptography.fernet import Fernet
from fastapi import Depends, FastAPI, Request
from sqlalchemy.exc import SQLAlchemyError

from features.users.access import Caller, Permissions
from features.users.api_keys import KnownKeys
from features.users.keyring import Keyring
from features.users.limits import Limits
from features.users.links import Links
from features.users.oidc import Provider
from features.users.passwords import Passwords
from features.users.revocation import Revocations
from features.users.settings import MAX_ACCESS_LIFETIME, UsersSettings
from shared.crypto import cipher
from shared.db import Database, database_of
from shared.feature import settings_of
from shared.mail import Outbox
from shared.problems import Unavailable
from shared.settings import Settings
from shared.web.client_address import client_address

MAX_USER_AGENT = 200
MAX_ADDRESS = 64
READING = ("GET", "HEAD")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class UsersState:
    settings: UsersSettings
    database: Database
    permissions: Permissions
    passwords: Passwords
    keyring: Keyring
    revocations: Revocations
    known_keys: KnownKeys
    links: Links
    limits: Limits
    providers: Mapping[str, Provider]
    attempts: Fernet
    secure: bool
    """Whether clients use HTTPS, so that cookies can have the `Secure` attribute."""


def open_state(app: FastAPI, settings: UsersSettings) -> UsersState:
    kernel: Settings = app.state.settings
    database, secret = database_of(app), kernel.secret()
    keyring = Keyring(
        database=database,
        seal=cipher(secret, "signing keys"),
        issuer=kernel.base_url,
        lifetime=settings.access_lifetime,
    )

    async def on_keys(ids: Sequence[str]) -> None:
        if keyring.ids != set(ids):
            await keyring.load()

    scopes = (scope for feature in app.state.features for scope in feature.scopes)
    return UsersState(
        settings=settings,
        database=database,
        permissions=Permissions(frozenset(scopes)),
        passwords=Passwords(cheap=kernel.env == "test"),
        keyring=keyring,
        revocations=Revocations(database, MAX_ACCESS_LIFETIME, on_keys),
        known_keys=KnownKeys(),
        links=Links(secret, settings, Outbox(secret)),
        limits=Limits(app.state.limiter, settings),
        providers={
            name: Provider(name, provider, kernel.base_url)
            for name, provider in settings.oidc_providers.items()
        },
        attempts=cipher(secret, "sign-in attempts"),
        secure=kernel.base_url.startswith("https:"),
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = open_state(app, settings_of(app, UsersSettings))
    app.state.users = state
    try:
        await state.keyring.load()
    except (Unavailable, SQLAlchemyError) as error:  # loaded again when first needed
        log.warning("signing_keys_not_loaded", error=repr(error))
    async with state.revocations.followed():
        yield


def state_of(app: FastAPI) -> UsersState:
    state: UsersState = app.state.users
    return state


async def _state(request: Request) -> UsersState:
    return state_of(request.app)


async def _caller(request: Request) -> Caller:
    return Caller(
        address=_printable(client_address(request), MAX_ADDRESS),
        user_agent=_printable(request.headers.get("user-agent", ""), MAX_USER_AGENT),
    )


def _printable(text: str, length: int) -> str:
    return "".join(c for c in text[:length] if c.isprintable())


StateDep = Annotated[UsersState, Depends(_state)]
CallerDep = Annotated[Caller, Depends(_caller)]


async def _catch_up(request: Request, state: StateDep) -> AsyncIterator[None]:
    yield
    if request.method not in READING:
        await state.revocations.catch_up()


CatchUp = Depends(_catch_up, scope="function")
"""After a write, updates this process's revocations before the response is sent.

It is a dependency of the router, so that it is entered before the database session and left after
the commit.
"""
