"""Deletion of accounts: at once for every reader, in batches for the stored rows.

The deletion marks the row of the account, ends its access, erases who it was, and frees its address
and its identities, in one short transaction however much the account owns. Features that own rows
of it subscribe to `account_changes`, and delete them in batches, from the outbox.

A request that was under way may have added a row after a subscriber had finished. So the row of the
account, which has nothing but its id, is removed hours later, when no such request is left, and the
deletion is published once more.
"""

from datetime import UTC, datetime, timedelta
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
from shared.db import Database, WriteSession, database_of, write_session_of
from shared.db.changes import Change
from shared.db.outbox import is_delivered
from shared.tasks import Task
from shared.web.idempotency import delete_keys_of

REMOVED_AFTER = timedelta(hours=2)
"""Longer than a request may take: `request_timeout` is an hour at most. An upload that takes longer
confirms its access in the transaction that writes its rows."""
ACCOUNTS_PER_RUN = 100
EVENTS_PER_BATCH = 5_000

WAYS_IN = (Session, ApiKey, Identity)
SELECT_DELETED = (
    select(col(User.id))
    .where(col(User.deleted_at) < bindparam("before"))
    .order_by(func.random())  # one that fails does not keep the others waiting
    .limit(ACCOUNTS_PER_RUN)
)
IS_THIS_USER = col(User.id) == bindparam("user_id")
# FOR UPDATE: no transaction is adding an event to the account, and its DELETE waits for none.
LOCK_USER = select(col(User.id)).where(IS_THIS_USER).with_for_update(skip_locked=True)
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
    await account_changes.deleted(write_session_of(session), user_id, [user_id])
    recorded = client if actor_id != user_id else ClientInfo("", "")
    await record(session, EventKind.DELETED, None, recorded, str(user_id), actor_id=actor_id)


async def delete_records(session: WriteSession, deleted: Change) -> int:
    """Deletes a batch of the events and the idempotency keys of a deleted account; returns how
    many, 0 once none is left."""
    events = await session.execute(DELETE_EVENTS, {"user_id": deleted.owner_id})
    return events + await delete_keys_of(session, deleted.owner_id)


async def _remove_deleted_accounts(app: FastAPI) -> int:
    database = database_of(app)
    async with database.transaction() as session:  # of the primary: a replica may lag
        found = await session.fetch(SELECT_DELETED, {"before": datetime.now(UTC) - REMOVED_AFTER})
    return sum([await _remove_account(database, row.id) for row in found])


async def _remove_account(database: Database, user_id: UUID) -> int:
    """Removes the row of a deleted account, and publishes the deletion once more.

    Returns 0 while a subscriber or a transaction still has rows of it, else 1.
    """
    of = {"user_id": user_id}
    async with database.transaction() as session:
        if not await is_delivered(session, account_changes, user_id):
            return 0
        if await session.fetch_value(LOCK_USER, of) is None:
            return 0
        await account_changes.deleted(session, user_id, [user_id])
        return await session.execute(DELETE_USER, of)


BACKLOG = text("""
SELECT count(*), 0, greatest(0, extract(epoch FROM statement_timestamp() - min(due)))
FROM (
    SELECT deleted_at + CAST(:removed_after AS interval) AS due
    FROM users WHERE deleted_at IS NOT NULL
) AS deleted WHERE due < statement_timestamp()
""").bindparams(removed_after=REMOVED_AFTER)

remove_deleted_accounts = Task(
    name="remove_deleted_accounts", run=_remove_deleted_accounts, every=60, backlog=BACKLOG
)
