"""Delivers the changes of the outbox to their subscribers.

Each subscriber has a task, and processes the changes of an owner in order. Each change is processed
in one transaction, which also removes the subscriber from the change's `waiting` list, so its
database writes happen exactly once. A change that fails is tried again, and the owner's later
changes wait for it, until it is parked (a dead letter).
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID

import structlog
from fastapi import FastAPI
from sqlalchemy import text

from shared.db import Database, database_of
from shared.db.changes import Change, ChangeKind, Subscription
from shared.db.locks import advisory_lock
from shared.db.outbox import OUTBOX_CHANNEL
from shared.db.owners import OwnersInTurn
from shared.tasks import PeriodicTask, Task

POLL_SECONDS = 5.0
OWNERS_PER_PASS = 100
MAX_CHANGES_PER_OWNER, MAX_SECONDS_PER_OWNER = 100, 30.0  # then other owners have their turn
CHANGE_TIMEOUT_SECONDS = 30.0  # then the change has failed
FIRST_RETRY_DELAY = timedelta(seconds=1)  # doubles with each attempt
MAX_ATTEMPTS = 13  # spread across about an hour
ORPHANED_LIFETIME = timedelta(days=1)  # must outlast the rollout of a release
PARKED_LIFETIME = timedelta(days=30)

# Excludes changes that this subscriber has parked, and owners whose change it retries later.
IS_DUE = """t.waiting @> ARRAY[CAST(:name AS text)] AND NOT EXISTS (
    SELECT FROM outbox_failures AS f WHERE f.owner_id = t.owner_id AND f.subscriber = :name
    AND (f.next_attempt_at > statement_timestamp()
        OR f.change_id = t.id AND f.next_attempt_at IS NULL))"""
TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(CAST(:key AS bigint))")
SELECT_CHANGE = text("""
SELECT c.id, c.topic, c.kind, c.ids, coalesce(f.attempts, 0) AS attempts,
    coalesce(f.next_attempt_at <= statement_timestamp(), true) AS due
FROM outbox_changes AS c
LEFT JOIN outbox_failures AS f
    ON f.owner_id = :owner AND f.change_id = c.id AND f.subscriber = :name
WHERE c.owner_id = :owner AND c.waiting @> ARRAY[CAST(:name AS text)]
    AND (f.attempts IS NULL OR f.next_attempt_at IS NOT NULL)
ORDER BY c.id LIMIT 1
""")
# An UPDATE, then a DELETE: subscribers that finish the same change at once wait for the row lock of
# this UPDATE, and the one that empties `waiting` deletes the row.
STOP_WAITING = text("""
UPDATE outbox_changes SET waiting = array_remove(waiting, CAST(:name AS text))
WHERE owner_id = :owner AND id = :id RETURNING cardinality(waiting)
""")
DELETE_CHANGE = text("DELETE FROM outbox_changes WHERE owner_id = :owner AND id = :id")
RECORD_FAILURE = text("""
INSERT INTO outbox_failures AS f
    (owner_id, change_id, subscriber, attempts, next_attempt_at, error)
SELECT owner_id, id, CAST(:name AS text), 1,
    statement_timestamp() + CAST(:pause AS interval), :error
FROM outbox_changes
WHERE owner_id = :owner AND id = :id AND waiting @> ARRAY[CAST(:name AS text)]
FOR NO KEY UPDATE
ON CONFLICT (owner_id, change_id, subscriber) DO UPDATE SET attempts = f.attempts + 1,
    next_attempt_at = excluded.next_attempt_at, error = excluded.error
""")
SELECT_OWNERS_OF_OLD = text("""
SELECT DISTINCT owner_id FROM outbox_changes
WHERE created_at < statement_timestamp() - CAST(:lifetime AS interval)
""")
DELETE_ORPHANED = text("""
DELETE FROM outbox_changes WHERE owner_id = :owner
AND created_at < statement_timestamp() - CAST(:lifetime AS interval)
AND NOT waiting && CAST(:names AS text[])
""")
DELETE_PARKED = text("""
DELETE FROM outbox_changes AS c WHERE owner_id = :owner AND kind <> 'deleted'
AND created_at < statement_timestamp() - CAST(:lifetime AS interval)
AND NOT EXISTS (
    SELECT FROM unnest(waiting) AS name WHERE name = ANY (CAST(:names AS text[])) AND NOT EXISTS (
        SELECT FROM outbox_failures AS f WHERE f.owner_id = :owner AND f.change_id = c.id
        AND f.subscriber = name AND f.next_attempt_at IS NULL))
""")
SELECT_BACKLOG = """
SELECT count(*) - count(f.attempts), count(f.attempts),
    greatest(0, extract(epoch FROM
        clock_timestamp() - min(created_at) FILTER (WHERE f.attempts IS NULL)))
FROM outbox_changes AS c
LEFT JOIN outbox_failures AS f ON f.owner_id = c.owner_id AND f.change_id = c.id
    AND f.subscriber = :name AND f.next_attempt_at IS NULL
WHERE c.waiting @> ARRAY[CAST(:name AS text)]
"""

log = structlog.get_logger(__name__)


def outbox_tasks(subscriptions: Iterable[Subscription]) -> list[Task]:
    """Returns one task for each subscription that has an outbox."""
    return [
        Task(
            name=f"outbox_{each.outbox}",
            run=partial(
                _deliver_all, subscription=each, owners=OwnersInTurn("outbox_changes", IS_DUE)
            ),
            every=POLL_SECONDS,
            channel=OUTBOX_CHANNEL,
            backlog=text(SELECT_BACKLOG).bindparams(name=each.outbox),
        )
        for each in subscriptions
        if each.outbox
    ]


def delete_old_changes(subscriptions: Iterable[Subscription]) -> PeriodicTask:
    """Returns the task that deletes changes whose subscribers no longer exist, after a day, and
    parked ones, after 30 days.

    It keeps a parked deletion: what a subscriber still has of the deleted rows, or of a deleted
    account, would stay for ever.
    """
    names = [each.outbox for each in subscriptions if each.outbox]
    return PeriodicTask(
        name="delete_old_changes", run=partial(_delete_old, names=names), every=3600
    )


async def _deliver_all(app: FastAPI, subscription: Subscription, owners: OwnersInTurn) -> int:
    database, name = database_of(app), subscription.outbox
    async with database.transaction() as session:  # of the primary: a replica may lag
        due = await owners.next(session, OWNERS_PER_PASS, {"name": name})
    return sum([await _deliver_to(database, subscription, owner_id) for owner_id in due])


async def _deliver_to(database: Database, subscription: Subscription, owner_id: UUID) -> int:
    """Tries to deliver the due changes of an owner, unless another process does; returns how many.

    One that fails counts too: it is not due any more, and changes of other owners may be.
    """
    tried, until = 0, time.monotonic() + MAX_SECONDS_PER_OWNER
    while await _deliver_next(database, subscription, owner_id):
        tried += 1
        if tried == MAX_CHANGES_PER_OWNER or time.monotonic() > until:
            break
    return tried


async def _deliver_next(database: Database, subscription: Subscription, owner_id: UUID) -> bool:
    """Tries to deliver the next change of an owner; returns whether one was due."""
    name = str(subscription.outbox)
    parameters = {"owner": owner_id, "name": name}
    attempted = None
    try:
        async with database.transaction() as session, asyncio.timeout(CHANGE_TIMEOUT_SECONDS):
            if not await session.fetch_value(
                TRY_LOCK, {"key": advisory_lock("app.outbox", name, owner_id)}
            ):
                return False
            row = await session.fetch_one(SELECT_CHANGE, parameters)
            if row is None or not row.due:
                return False
            attempted = row
            change = Change(row.topic, ChangeKind(row.kind), owner_id, row.ids)
            if await subscription.run(session, change):
                return True  # it did one batch, and is run again until nothing is left to do
            if not await session.fetch_value(STOP_WAITING, parameters | {"id": row.id}):
                await session.execute(DELETE_CHANGE, parameters | {"id": row.id})
            return True
    except Exception as error:  # of any kind: the changes of other owners must not wait for this
        if attempted is None:
            raise
        await _record_failure(
            database, parameters | {"id": attempted.id}, attempted.attempts + 1, error
        )
        return True


async def _record_failure(
    database: Database, parameters: dict[str, object], attempts: int, error: Exception
) -> None:
    parked = attempts >= MAX_ATTEMPTS
    pause = None if parked else FIRST_RETRY_DELAY * 2 ** (attempts - 1)
    async with database.transaction() as session:
        await session.execute(
            RECORD_FAILURE, parameters | {"pause": pause, "error": repr(error)[:1_000]}
        )
    event = "change_parked" if parked else "change_retry_scheduled"
    log.error(
        event,
        subscriber=parameters["name"],
        change_id=parameters["id"],
        attempts=attempts,
        exc_info=error,
    )


async def _delete_old(app: FastAPI, names: Sequence[str]) -> None:
    database = database_of(app)
    async with database.transaction() as session:
        owners = await session.fetch(SELECT_OWNERS_OF_OLD, {"lifetime": ORPHANED_LIFETIME})
    for row in owners:
        of = {"owner": row.owner_id, "names": names}
        async with database.transaction() as session:
            await session.execute(DELETE_ORPHANED, of | {"lifetime": ORPHANED_LIFETIME})
            await session.execute(DELETE_PARKED, of | {"lifetime": PARKED_LIFETIME})
