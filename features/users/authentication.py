"""Turns a credential into a principal, in most cases without a database query."""

from fastapi import FastAPI
from sqlmodel import col, select

from features.users.access_tokens.jwt import InvalidCredential, UnknownSigningKey
from features.users.access_tokens.signing_keys import Keyring
from features.users.accounts.tables import IS_NOT_DELETED, User
from features.users.opaque_tokens import API_KEY
from features.users.sessions.tables import Session
from features.users.state import state_of
from shared.auth import Principal
from shared.db import Database
from shared.problems import Unauthorized


async def authenticate(app: FastAPI, credential: str) -> Principal:
    """Returns the principal of an access token or an API key.

    Raises:
        Unauthorized: the credential is invalid, expired or revoked.
        TooManyRequests: the API key has exceeded its rate limit.
    """
    state = state_of(app)
    if credential.startswith(f"{API_KEY}_"):
        key = await state.api_key_cache.get(state.database, state.permissions, credential)
        if key.id in state.revocation_list or key.principal.user_id in state.revocation_list:
            raise InvalidCredential
        await state.rate_limits.api_key(str(key.id))
        return key.principal
    principal = await _read_access_token(state.keyring, credential)
    if not state.revocation_list.fresh:
        await _check_in_database(state.database, principal)
    elif principal.user_id in state.revocation_list:
        raise Unauthorized("User not found")
    elif principal.session_id in state.revocation_list:
        raise InvalidCredential
    return principal


async def _read_access_token(keyring: Keyring, token: str) -> Principal:
    try:
        return keyring.reader.read(token)
    except UnknownSigningKey:
        if not await keyring.reload():
            raise
        return keyring.reader.read(token)


async def _check_in_database(database: Database, principal: Principal) -> None:
    """Checks in the database that the account and the session exist.

    Used while this process's revocation list is too old.

    Raises:
        Unauthorized: the account or the session has ended.
        Unavailable: the database cannot be reached.
    """
    of_principal = (
        select(User.id, Session.id)
        .select_from(User)
        .where(User.id == principal.user_id, IS_NOT_DELETED)
        .outerjoin(
            Session,
            (col(Session.user_id) == col(User.id)) & (col(Session.id) == principal.session_id),
        )
    )
    async with database.orm_transaction() as session:
        row = (await session.exec(of_principal)).one_or_none()
    if row is None:
        raise Unauthorized("User not found")
    if row[1] is None:
        raise InvalidCredential
