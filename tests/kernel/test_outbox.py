"""Subscribers that run after the commit: in order for each owner, with retries, and once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from uuid import UUID

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app import outbox
from app.discovery import find_features
from app.main import create_app
from app.outbox import MAX_ATTEMPTS, _record_failure, delete_old_changes, outbox_tasks
from app.task_runner import run_until_idle
from shared.db import WriteSession, database_of
from shared.db.changes import Change, ChangeKind, Subscription, Topic
from shared.db.locks import advisory_lock
from shared.feature import Feature, FeatureError
from shared.problems import Conflict
from shared.settings import Settings
from shared.tasks import Task
from tests.kit import eventually, max_queries, within

ADA, BOB = UUID(int=1), UUID(int=2)
ROWS = [UUID(int=10 + number) for number in range(30)]
rows = Topic("rows")
END_PAUSES = text(
    "UPDATE outbox_failures SET next_attempt_at = clock_timestamp() WHERE next_attempt_at > now()"
)
SELECT_WAITING = text("SELECT owner_id, ids, waiting FROM outbox_changes ORDER BY id")
SELECT_FAILURES = text("SELECT * FROM outbox_failures")
AGE_CHANGES = text("UPDATE outbox_changes SET created_at = created_at - make_interval(days => :d)")


class Subscriber:
    """Remembers the changes that it has processed; fails where `fails` says so."""

    def __init__(self, outbox: str) -> None:
        self.seen: list[Change] = []
        self.fails: Callable[[Change], bool] = lambda change: False
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        self.subscription = Subscription(rows, self.run, outbox=outbox)

    async def run(self, session: WriteSession, change: Change) -> None:
        await session.fetch(text("SELECT 1"))
        if self.meanwhile:
            await self.meanwhile()
        if self.fails(change):
            raise RuntimeError("a subscriber's own fault")
        self.seen.append(change)

    def has_seen(self, row: UUID) -> bool:
        return row in self.ids

    @property
    def ids(self) -> list[UUID]:
        return [row for change in self.seen for row in change.ids]


@pytest.fixture
def mailer() -> Subscriber:
    return Subscriber("mailer")


@pytest.fixture
def auditor() -> Subscriber:
    return Subscriber("auditor")


@pytest.fixture
async def app(
    settings: Settings, mailer: Subscriber, auditor: Subscriber
) -> AsyncIterator[FastAPI]:
    feature = Feature(name="probe", subscriptions=(mailer.subscription, auditor.subscription))
    app = create_app(settings, [*find_features(), feature], run_tasks=False)
    async with app.router.lifespan_context(app):
        yield app


async def publish(app: FastAPI, *ids: UUID, owner: UUID = ADA) -> None:
    async with database_of(app).transaction() as session:
        for row in ids:
            await rows.created(session, owner, [row])


async def publish_in_vain(app: FastAPI, row: UUID) -> None:
    async with database_of(app).transaction() as session:
        await rows.created(session, ADA, [row])
        raise Conflict("No")


async def deliver(app: FastAPI, subscriber: Subscriber) -> int:
    (task,) = outbox_tasks([subscriber.subscription])
    return await run_until_idle(app, task)


async def waiting(app: FastAPI) -> list[list[str]]:
    async with database_of(app).transaction() as session:
        return [row.waiting for row in await session.fetch(SELECT_WAITING)]


async def failures(app: FastAPI) -> list[tuple[str, int, bool]]:
    async with database_of(app).transaction() as session:
        found = await session.fetch(SELECT_FAILURES)
    return [(row.subscriber, row.attempts, row.next_attempt_at is None) for row in found]


async def end_pauses(app: FastAPI) -> None:
    async with database_of(app).transaction() as session:
        await session.execute(END_PAUSES)


async def test_each_subscriber_sees_each_committed_change_once(
    app: FastAPI, mailer: Subscriber, auditor: Subscriber
) -> None:
    with pytest.raises(Conflict):
        await publish_in_vain(app, ROWS[0])
    async with database_of(app).transaction() as session:
        await rows.updated(session, ADA, ROWS[:3])
    assert await waiting(app) == [["auditor", "mailer"]]
    assert (await deliver(app, mailer), await deliver(app, mailer)) == (1, 0)
    assert await waiting(app) == [["auditor"]]
    assert await deliver(app, auditor) == 1
    assert await waiting(app) == []
    assert mailer.seen == auditor.seen == [Change("rows", ChangeKind.UPDATED, ADA, ROWS[:3])]


async def test_a_publish_is_one_row_however_many_subscribers(app: FastAPI) -> None:
    with max_queries(1):
        await publish(app, ROWS[0])
    assert len(await waiting(app)) == 1


async def test_changes_of_an_owner_come_in_order_whoever_delivers_them(
    app: FastAPI, mailer: Subscriber
) -> None:
    mailer.meanwhile = lambda: asyncio.sleep(0)
    for row in ROWS:
        await publish(app, row)
        await publish(app, row, owner=BOB)
    async with within(30, "the deliveries"):
        while await asyncio.gather(*(deliver(app, mailer) for _ in range(4))) != [0] * 4:
            pass
    for owner in (ADA, BOB):
        assert [row for each in mailer.seen if each.owner_id == owner for row in each.ids] == ROWS


async def test_a_change_that_fails_holds_up_its_owner_alone(
    app: FastAPI, mailer: Subscriber, auditor: Subscriber
) -> None:
    mailer.fails = lambda change: change.ids == ROWS[1:2]
    await publish(app, *ROWS[:3])
    await publish(app, ROWS[5], owner=BOB)
    await deliver(app, mailer)
    await deliver(app, auditor)
    assert sorted(mailer.ids) == [ROWS[0], ROWS[5]]
    assert sorted(auditor.ids) == [*ROWS[:3], ROWS[5]]
    assert await failures(app) == [("mailer", 1, False)]
    assert await deliver(app, mailer) == 0  # not yet due
    mailer.fails = lambda change: False
    await end_pauses(app)
    assert await deliver(app, mailer) == 2
    assert mailer.ids[-2:] == ROWS[1:3]
    assert (await waiting(app), await failures(app)) == ([], [])


async def test_a_change_that_always_fails_is_parked_and_the_next_are_delivered(
    app: FastAPI, mailer: Subscriber
) -> None:
    mailer.fails = lambda change: change.ids == ROWS[:1]
    await publish(app, *ROWS[:2])
    for _ in range(MAX_ATTEMPTS):
        assert mailer.ids == []
        await deliver(app, mailer)
        await end_pauses(app)
    await deliver(app, mailer)
    assert mailer.ids == [ROWS[1]]
    assert await failures(app) == [("mailer", MAX_ATTEMPTS, True)]
    (task,) = outbox_tasks([mailer.subscription])
    assert task.backlog is not None
    backlog = await database_of(app).read().fetch(task.backlog)
    assert [tuple(row.values())[:2] for row in backlog] == [(0, 1)]


async def test_owners_whose_changes_fail_hold_up_none_behind_them(
    app: FastAPI, mailer: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: a pass that meets nothing but failures is not the last."""
    monkeypatch.setattr(outbox, "OWNERS_PER_PASS", 2)
    *failing, last = (UUID(int=number) for number in range(1, 7))
    mailer.fails = lambda change: change.owner_id != last
    for owner in (*failing, last):
        await publish(app, ROWS[0], owner=owner)
    await deliver(app, mailer)
    assert [change.owner_id for change in mailer.seen] == [last]


async def test_what_a_failed_attempt_wrote_is_undone(app: FastAPI) -> None:
    async def write_and_fail(session: WriteSession, change: Change) -> None:
        await other.created(session, change.owner_id, change.ids)
        raise RuntimeError("after the write")

    other = Topic("others")
    await publish(app, ROWS[0])
    subscription = Subscription(rows, write_and_fail, outbox="mailer")
    (task,) = outbox_tasks([subscription])
    await run_until_idle(app, task)
    assert await failures(app) == [("mailer", 1, False)]
    assert len(await waiting(app)) == 1


async def test_two_subscribers_of_one_change_that_end_at_once_leave_nothing(
    app: FastAPI, mailer: Subscriber, auditor: Subscriber
) -> None:
    both = asyncio.Barrier(2)
    mailer.meanwhile = auditor.meanwhile = both.wait
    await publish(app, *ROWS)
    async with within(30, "both"):
        await asyncio.gather(deliver(app, mailer), deliver(app, auditor))
    assert mailer.ids == auditor.ids == ROWS
    assert await waiting(app) == []


async def test_a_removed_subscriber_leaves_nothing_behind(
    app: FastAPI, mailer: Subscriber, auditor: Subscriber
) -> None:
    await publish(app, *ROWS[:2])
    await deliver(app, auditor)
    left = delete_old_changes([auditor.subscription])
    await left.run(app)
    assert len(await waiting(app)) == 2  # an old release may still run beside this one
    async with database_of(app).transaction() as session:
        await session.execute(AGE_CHANGES, {"d": 2})
    await delete_old_changes([mailer.subscription]).run(app)
    assert len(await waiting(app)) == 2
    await left.run(app)
    assert await waiting(app) == []


async def test_parked_changes_are_deleted_after_thirty_days(
    app: FastAPI, mailer: Subscriber, auditor: Subscriber
) -> None:
    known = delete_old_changes([mailer.subscription, auditor.subscription])
    mailer.fails = lambda change: True
    await publish(app, ROWS[0])
    for _ in range(MAX_ATTEMPTS):
        await deliver(app, mailer)
        await end_pauses(app)
    async with database_of(app).transaction() as session:
        await session.execute(AGE_CHANGES, {"d": 31})
    await known.run(app)
    assert await waiting(app) == [["auditor", "mailer"]]  # the auditor has not seen it
    await deliver(app, auditor)
    await known.run(app)
    assert await waiting(app) == []


async def test_a_parked_deletion_waits_until_it_is_processed(
    app: FastAPI, mailer: Subscriber
) -> None:
    """Else what the subscriber has of a deleted account would stay, and nothing know of it."""
    mailer.fails = lambda change: True
    async with database_of(app).transaction() as session:
        await rows.deleted(session, ADA, ROWS[:1])
    for _ in range(MAX_ATTEMPTS):
        await deliver(app, mailer)
        await end_pauses(app)
    async with database_of(app).transaction() as session:
        await session.execute(AGE_CHANGES, {"d": 31})
    await delete_old_changes([mailer.subscription]).run(app)
    mailer.fails = lambda change: False
    async with database_of(app).transaction() as session:
        await session.execute(text("DELETE FROM outbox_failures WHERE subscriber = 'mailer'"))
    assert await deliver(app, mailer) == 1
    assert mailer.ids == ROWS[:1]


async def test_a_parked_change_that_a_removed_subscriber_waits_for_is_deleted(
    app: FastAPI, mailer: Subscriber
) -> None:
    mailer.fails = lambda change: True
    await publish(app, ROWS[0])  # the auditor, another subscriber, is then removed
    for _ in range(MAX_ATTEMPTS):
        await deliver(app, mailer)
        await end_pauses(app)
    async with database_of(app).transaction() as session:
        await session.execute(AGE_CHANGES, {"d": 31})
    await delete_old_changes([mailer.subscription]).run(app)
    assert (await waiting(app), await failures(app)) == ([], [])


async def test_an_owner_with_many_changes_holds_up_no_other(
    app: FastAPI, mailer: Subscriber
) -> None:
    for _ in range(12):
        await publish(app, *ROWS, *ROWS, *ROWS, *ROWS)
    await publish(app, ROWS[0], owner=BOB)
    key = advisory_lock("app.outbox", "mailer", ADA)
    async with database_of(app).transaction() as session:
        await session.execute(text(f"SELECT pg_advisory_xact_lock({key})"))
        assert await deliver(app, mailer) == 1
    assert [change.owner_id for change in mailer.seen] == [BOB]


async def test_an_owner_whose_changes_take_long_holds_up_no_other(
    app: FastAPI, mailer: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_SECONDS_PER_OWNER", 0.0)
    await publish(app, *ROWS[:3])
    await publish(app, ROWS[3], owner=BOB)
    (task,) = outbox_tasks([mailer.subscription])
    assert await task.run(app) == 2
    assert ROWS[3] in mailer.ids


async def test_no_failure_is_recorded_of_what_another_process_has_delivered(
    app: FastAPI, mailer: Subscriber
) -> None:
    await publish(app, ROWS[0])
    async with database_of(app).transaction() as session:
        change_id = await session.fetch_value(text("SELECT id FROM outbox_changes"))
    assert await deliver(app, mailer) == 1
    of = {"owner": ADA, "name": "mailer", "id": change_id}
    await _record_failure(database_of(app), of, 1, RuntimeError("of the process that was slower"))
    assert await failures(app) == []
    await publish(app, ROWS[1])
    assert await deliver(app, mailer) == 1


async def test_a_commit_wakes_the_subscriber(
    settings: Settings, mailer: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.outbox.POLL_SECONDS", 3600.0)
    feature = Feature(name="probe", subscriptions=(mailer.subscription,))
    app = create_app(settings, [*find_features(), feature])
    async with app.router.lifespan_context(app):
        for row in ROWS[:3]:
            await publish(app, row)
            await eventually(partial(mailer.has_seen, row), "the change")


async def test_two_tasks_of_one_name_are_refused(settings: Settings, mailer: Subscriber) -> None:
    async def run(_app: FastAPI) -> int:
        return 0

    taken = Task(name="outbox_mailer", run=run, every=5)
    feature = Feature(name="probe", tasks=(taken,), subscriptions=(mailer.subscription,))
    with pytest.raises(FeatureError, match="2 background tasks have the name 'outbox_mailer'"):
        create_app(settings, [*find_features(), feature])
