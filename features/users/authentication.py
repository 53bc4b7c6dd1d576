"""Turns a credential into a principal, in most cases without a database query."""

from fastapi import FastAPI
from sqlmodel import col, select

from features.users.keyring import Keyring
from features.users.opaque import API_KEY
from features.users.state import state_of
from features.users.tables import Session, User
from features.users.tokens import InvalidToken, UnknownKey
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
        key = await state.known_keys.find(state.database, state.permissions, credential)
        if key.id in state.revocations or key.principal.user_id in state.revocations:
            raise InvalidToken
        await state.limits.api_key(str(key.id))
        return key.principal
    principal = await _read(state.keyring, credential)
    if not state.revocations.fresh:
        await _ask(state.database, principal)
    elif principal.user_id in state.revocations:
        raise Unauthorized("User not found")
    elif principal.session_id in state.revocations:
        raise InvalidToken
    return principal


async def _read(keyring: Keyring, token: str) -> Principal:
    try:
        return keyring.reader.read(token)
    except UnknownKey:
        if not await keyring.load_again():
            raise
        return keyring.reader.read(token)


async def _ask(database: Database, principal: Principal) -> None:
    """Checks in the database that the account and the session exist.

    Used while this process's copy of the revocations is too old.

    Raises:
        Unauthorized: the account or the session has ended.
        Unavailable: the database cannot be reached.
    """
    asked = select(User.id, Session.id).select_from(User).where(User.id == principal.user_id)
    asked = asked.outerjoin(
        Session, (col(Session.user_id) == col(User.id)) & (col(Session.id) == principal.session_id)
    )
    async with database.orm_transaction() as session:
        row = (await session.exec(asked)).one_or_none()
    if row is None:
        raise Unauthorized("User not found")
    if row[1] is None:
        raise InvalidToken
