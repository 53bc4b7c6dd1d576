"""Turns a credential into a principal, in most cases without a database query."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

from fastapi import FastAPI
from sqlalchemy import bindparam
from sqlmodel import col, select

from features.users.access_tokens.jwt import InvalidCredential, UnknownSigningKey
from features.users.accounts.tables import IS_NOT_DELETED, User
from features.users.api_keys.tables import ApiKey
from features.users.opaque_tokens import API_KEY
from features.users.sessions.tables import Session
from features.users.state import UsersState, state_of
from shared.auth import Principal
from shared.db import Database, WriteSession
from shared.problems import Unauthorized

KEY_WAIT_SECONDS = 1.0

# KEY SHARE: who deletes the row waits, a refresh of the session does not.
LOCK_SESSION = (
    select(Session.id)
    .where(col(Session.id) == bindparam("session_id"), col(Session.user_id) == bindparam("user_id"))
    .with_for_update(read=True, key_share=True)
)
# The account before its key, as who deletes a key does. Its sessions end with the account, but its
# keys are refused only while it is not active.
LOCK_ACTIVE_USER = (
    select(User.id)
    .where(col(User.id) == bindparam("user_id"), col(User.is_active), IS_NOT_DELETED)
    .with_for_update(read=True)
)
LOCK_API_KEY = (
    select(ApiKey.id)
    .where(
        col(ApiKey.id) == bindparam("api_key_id"),
        col(ApiKey.user_id) == bindparam("user_id"),
        col(ApiKey.expires_at).is_(None) | (col(ApiKey.expires_at) > bindparam("now")),
    )
    .with_for_update(read=True, key_share=True)
)


async def authenticate(app: FastAPI, credential: str) -> Principal:
    """Returns the principal of an access token or an API key.

    Raises:
        Unauthorized: the credential is invalid, expired or revoked.
        TooManyRequests: the API key has exceeded its rate limit.
    """
    state = state_of(app)
    if credential.startswith(f"{API_KEY}_"):
        key = await state.api_key_cache.get(state.database, state.permissions, credential)
        principal, revoked = key.principal, state.revocation_list
        if principal.api_key_id in revoked or principal.user_id in revoked:
            raise InvalidCredential
        await state.rate_limits.api_key(str(principal.api_key_id))
        return principal
    principal = await _read_access_token(state, credential)
    if not state.revocation_list.fresh:
        await _check_in_database(state.database, principal)
    elif principal.user_id in state.revocation_list:
        raise Unauthorized("User not found")
    elif principal.session_id in state.revocation_list:
        raise InvalidCredential
    return principal


def recognize(app: FastAPI, credential: str) -> Principal | None:
    """Returns the principal of a credential that was valid a moment ago and still is, without a
    query, a wait or the check of a signature; None if that cannot be told."""
    state, principal = state_of(app), None
    if credential.startswith(f"{API_KEY}_"):
        key = state.api_key_cache.find(credential)
        principal = key.principal if key and not key.has_expired else None
    elif state.revocation_list.fresh:
        principal = state.keyring.reader.find(credential)
    if principal is None:
        return None
    ids = (principal.user_id, principal.session_id, principal.api_key_id)
    return None if any(id_ in state.revocation_list for id_ in ids) else principal


async def lock_access(session: WriteSession, principal: Principal) -> bool:
    """Returns whether the session or API key of the principal has not ended, and locks it."""
    of = {
        "user_id": principal.user_id,
        "session_id": principal.session_id,
        "api_key_id": principal.api_key_id,
        "now": datetime.now(UTC),
    }
    if principal.session_id:
        return await session.fetch_one(LOCK_SESSION, of) is not None
    return (
        await session.fetch_one(LOCK_ACTIVE_USER, of) is not None
        and await session.fetch_one(LOCK_API_KEY, of) is not None
    )


async def _read_access_token(state: UsersState, token: str) -> Principal:
    """Returns the principal of a token. A signing key that this process does not know is looked
    for by a poll of the revocation list, which has a separate connection.

    Any client may send such tokens: those of a process share few polls a second, and none waits for
    a connection that others use. A new key signs only minutes after each process has read it, so
    one that a poll does not find, or cannot look for, is refused.
    """
    try:
        return state.keyring.reader.read(token)
    except UnknownSigningKey:
        if not state.keyring.ids:  # the database could not be reached when the process started
            await state.keyring.load()
        with suppress(TimeoutError):
            async with asyncio.timeout(KEY_WAIT_SECONDS):
                await state.revocation_list.join_poll()
        return state.keyring.reader.read(token)


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
