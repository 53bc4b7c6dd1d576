"""State of the users feature that lives as long as the process."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from cryptography.fernet import Fernet
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from features.users.access_tokens.revocation_list import RevocationList
from features.users.access_tokens.signing_keys import Keyring
from features.users.api_keys.cache import ApiKeyCache
from features.users.mail.outbox import Outbox
from features.users.mail.tokens import MailTokens
from features.users.passwords.hashing import PasswordHasher
from features.users.permissions import Permissions
from features.users.rate_limits import RateLimits
from features.users.settings import MAX_ACCESS_LIFETIME, UsersSettings
from features.users.single_sign_on.provider import Provider
from shared.crypto import cipher
from shared.db import Database, database_of
from shared.problems import Unavailable
from shared.settings import Settings
from shared.state import resource_of, settings_of

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class UsersState:
    settings: UsersSettings
    database: Database
    permissions: Permissions
    hasher: PasswordHasher
    keyring: Keyring
    revocation_list: RevocationList
    api_key_cache: ApiKeyCache
    mail_tokens: MailTokens
    outbox: Outbox
    rate_limits: RateLimits
    providers: Mapping[str, Provider]
    cookie_encryption: Fernet
    secure_cookies: bool
    """Whether clients use HTTPS, so that cookies can have the `Secure` attribute."""


def _open_state(app: FastAPI, settings: UsersSettings) -> UsersState:
    kernel: Settings = app.state.settings
    database, secret = database_of(app), kernel.secret()
    keyring = Keyring(
        database=database,
        encryption=cipher(secret, "signing keys"),
        issuer=kernel.base_url,
        lifetime=settings.access_lifetime,
    )

    scopes = (scope for feature in app.state.features for scope in feature.scopes)
    mail_tokens = MailTokens(secret, settings)
    return UsersState(
        settings=settings,
        database=database,
        permissions=Permissions(frozenset(scopes)),
        hasher=PasswordHasher(cheap=kernel.env == "test"),
        keyring=keyring,
        revocation_list=RevocationList(database, MAX_ACCESS_LIFETIME, keyring.read),
        api_key_cache=ApiKeyCache(),
        mail_tokens=mail_tokens,
        outbox=Outbox(secret, mail_tokens, settings),
        rate_limits=RateLimits(app.state.limiter, settings),
        providers={
            name: Provider(name, provider, kernel.base_url)
            for name, provider in settings.oidc_providers.items()
        },
        cookie_encryption=cipher(secret, "sign-in attempts"),
        secure_cookies=kernel.base_url.startswith("https:"),
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[UsersState]:
    state = _open_state(app, settings_of(app, UsersSettings))
    try:
        await state.keyring.load()
    except (Unavailable, SQLAlchemyError) as error:  # loaded again when first needed
        log.warning("signing_keys_not_loaded", error=repr(error))
    async with state.revocation_list.polling():
        yield state


def state_of(app: FastAPI) -> UsersState:
    return resource_of(app, UsersState)
