"""Deletion of accounts: at once for every reader, in batches for the stored rows.

To delete an account is to mark its row. That ends its access, erases who it was, and frees its
address and its identities, in one short transaction however much the account owns. Features that
own rows of it subscribe to `account_changes`, and remove them in batches, from the outbox. The
task `remove_deleted_accounts` removes the row of the account last.

A request that was under way may have added a row after a subscriber had finished. The foreign
keys cascade to it when the account's row goes, and refuse it from then on. Then the deletion is
published again, for subscribers without a foreign key.
"""

from datetime import UTC, datetime
from uuid import UUID

from fastapi import FastAPI
from sqlalchemy import bindparam, delete, func, select, text
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.access_tokens.tables import Revocation
from features.users.accounts.changes import account_changes
from features.users.accounts.handlers import get_user, require_another_admin
from features.users.accounts.tables import User
from features.users.api_keys.tables import ApiKey
from features.users.client_info import ClientInfo
from features.users.events.handlers import record
from features.users.events.tables import Event, EventKind
from features.users.mail.outbox import delete_mail
from features.users.passwords.tables import ResetRequest
from features.users.sessions.handlers import SessionPrincipal, require_recent_sign_in
from features.users.sessions.tables import Session
from features.users.single_sign_on.tables import Identity
from shared.db import Database, database_of, write_session_of
from shared.db.outbox import is_delivered
from shared.tasks import Task
from shared.web.idempotency import delete_keys_of

DELETION_CHANNEL = "deleted_accounts"
ACCOUNTS_PER_RUN = 100
EVENTS_PER_BATCH = 5_000

WAYS_IN = (Session, ApiKey, Identity)
SELECT_DELETED = (
    select(col(User.id))
    .where(col(User.deleted_at).is_not(None))
    .order_by(func.random())  # one that fails does not keep the others waiting
    .limit(ACCOUNTS_PER_RUN)
)
IS_THIS_USER = col(User.id) == bindparam("user_id")
# FOR UPDATE: no transaction is adding a row to the account, and its DELETE waits for none.
LOCK_USER = select(col(User.id)).where(IS_THIS_USER).with_for_update(skip_locked=True)
# For a feature that does not subscribe: its foreign key cascades, to however many rows.
CASCADE_SECONDS = 240.0
DELETE_USER = delete(User).where(IS_THIS_USER)
DELETE_EVENTS = delete(Event).where(
    col(Event.id).in_(
        select(col(Event.id))
        .where(col(Event.user_id) == bindparam("user_id"))
        .limit(EVENTS_PER_BATCH)
    )
)


async def delete_own_account(
    session: AsyncSession, principal: SessionPrincipal, client: ClientInfo
) -> None:
    """Deletes the account of a session; raises as `delete_user` does.

    Raises:
        Unauthorized: the session has ended, or its sign-in is not recent.
    """
    user = await _lock_user(session, principal.user_id)
    await require_recent_sign_in(session, principal)
    await _delete(session, user, user.id, client)


async def delete_user(
    session: AsyncSession, user_id: UUID, actor_id: UUID, client: ClientInfo
) -> None:
    """Deletes the account: it is not found any more, and its rows will be removed.

    One event stays: the id, who deleted it, and the address if that was an administrator.

    Raises:
        Unauthorized: the account was deleted already.
        Conflict: the account is the last administrator.
    """
    await _delete(session, await _lock_user(session, user_id), actor_id, client)


async def _lock_user(session: AsyncSession, user_id: UUID) -> User:
    await require_another_admin(session, user_id)
    return await get_user(session, user_id, lock=True)


async def _delete(session: AsyncSession, user: User, actor_id: UUID, client: ClientInfo) -> None:
    user_id = user.id
    await delete_mail(session, user.email)
    await session.exec(delete(ResetRequest).where(col(ResetRequest.email) == user.email))
    for table in WAYS_IN:
        await session.exec(delete(table).where(col(table.user_id) == user_id))
    session.add(Revocation(id=user_id))
    user.email, user.name, user.password_hash = "", None, None
    user.deleted_at = datetime.now(UTC)
    await session.flush()
    writing = write_session_of(session)
    await account_changes.deleted(writing, user_id, [user_id])
    writing.notify(DELETION_CHANNEL)
    recorded = client if actor_id != user_id else ClientInfo("", "")
    await record(session, EventKind.DELETED, None, recorded, str(user_id), actor_id=actor_id)


async def _remove_deleted_accounts(app: FastAPI) -> int:
    database = database_of(app)
    async with database.transaction() as session:  # of the primary: a replica may lag
        found = await session.fetch(SELECT_DELETED)
    return sum([await _remove_batch(database, row.id) for row in found])


async def _remove_batch(database: Database, user_id: UUID) -> int:
    """Removes a batch of rows of a deleted account, or its own when it is the last.

    Removes none, and returns 0, while a subscriber or a transaction still has rows of it.
    """
    of = {"user_id": user_id}
    async with database.transaction() as session:
        if not await is_delivered(session, account_changes, user_id):
            return 0
        if await session.fetch_value(LOCK_USER, of) is None:
            return 0
        rows = await session.execute(DELETE_EVENTS, of) + await delete_keys_of(session, user_id)
        if rows == 0:
            await session.allow(statement=CASCADE_SECONDS)
            rows = await session.execute(DELETE_USER, of)
            await account_changes.deleted(session, user_id, [user_id])
        return rows


BACKLOG = text("""
SELECT count(*), 0, greatest(0, extract(epoch FROM clock_timestamp() - min(deleted_at)))
FROM users WHERE deleted_at IS NOT NULL
""")

remove_deleted_accounts = Task(
    name="remove_deleted_accounts",
    run=_remove_deleted_accounts,
    every=5,
    channel=DELETION_CHANNEL,
    backlog=BACKLOG,
)
