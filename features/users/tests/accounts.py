"""For tests/kit/clients.py: creates accounts and credentials by the handlers, without requests.

The rows, events and mail are those of a registration and a sign-in over HTTP.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import httpx
from fastapi import FastAPI

from features.users.accounts.handlers import get_user, register
from features.users.accounts.schemas import UserCreate
from features.users.accounts.tables import Role
from features.users.api_keys.handlers import create_api_key as add_api_key
from features.users.api_keys.schemas import ApiKeyCreate
from features.users.client_info import ClientInfo
from features.users.feature import feature
from features.users.sessions.handlers import SessionPrincipal, open_session
from features.users.state import state_of
from shared.auth import Principal
from tests.kit import PASSWORD, eventually

CLIENT = ClientInfo("127.0.0.1", f"python-httpx/{httpx.__version__}")


async def create_account(app: FastAPI, email: str, *, admin: bool = False) -> dict[str, str]:
    """Registers an account with `PASSWORD`, and returns the request headers of a session of it."""
    state = state_of(app)
    new = UserCreate(email=email, password=PASSWORD)
    created = await register(state.database, state.hasher, state.outbox, new, CLIENT)
    lifetime = timedelta(seconds=state.settings.session_lifetime)
    async with state.database.orm_transaction() as session:
        user = await get_user(session, created.id)
        user.role = Role.ADMIN if admin else user.role
        now = datetime.now(UTC)
        grant = await open_session(
            session, user.id, user.role, CLIENT, lifetime, authenticated_at=now
        )
    # A request before this process has polled for the first time needs one more query.
    await eventually(lambda: state.revocation_list.fresh, "the first poll of the revocation list")
    principal = Principal(grant.user_id, state.permissions.of(grant.role), grant.session_id)
    return {"Authorization": f"Bearer {await state.keyring.sign(principal)}"}


async def create_api_key(app: FastAPI, headers: Mapping[str, str]) -> dict[str, str]:
    """Creates an API key for the account of a session, and returns the request headers of the key.

    It has all scopes of the other features: with those of this one a session is needed.
    """
    state = state_of(app)
    principal = state.keyring.reader.read(headers["Authorization"].removeprefix("Bearer "))
    assert principal.session_id
    scopes = sorted(state.permissions.scopes - feature.scopes.keys())
    new = ApiKeyCreate(name="robot", scopes=scopes)
    async with state.database.orm_transaction() as session:
        signed_in = SessionPrincipal(principal.user_id, principal.session_id, principal.scopes)
        _, key = await add_api_key(session, state.outbox, signed_in, new, CLIENT)
    return {"X-API-Key": key}
