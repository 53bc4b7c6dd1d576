"""A server that vanishes without a word: waiting for it ends, in a request and outside."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from asyncpg import QueryCanceledError
from fastapi import FastAPI
from sqlalchemy import func, text
from sqlmodel import select

from app.task_runner import run_until_idle, task_runner
from shared.db import Database, database, database_of, sessions
from shared.db.errors import CONNECTION_LOST, OUTCOME_UNKNOWN
from shared.problems import Unavailable
from shared.settings import Settings
from shared.tasks import PeriodicTaskStart, Task
from tests.kit import within
from tests.resilience.servers import Proxy

SELECT_ONE = text("SELECT 1")
NOW = datetime.now(UTC)


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(target=urlsplit(database_url).port or 0)
    async with await proxy.start():
        yield proxy
        proxy.reset_connections()


@pytest.fixture
def settings(settings: Settings, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(database, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(sessions, "SILENCE_SECONDS", 0.2)
    url = (settings.database_url or "").replace(f":{proxy.target}/", f":{proxy.port}/")
    return settings.model_copy(update={"database_url": url, "database_statement_timeout": 0.5})


@pytest.fixture
def behind_pooler() -> bool:
    return False


@pytest.fixture
async def opened(settings: Settings, behind_pooler: bool) -> AsyncIterator[Database]:
    url = settings.database_url or ""
    direct = {"database_direct_url": url if behind_pooler else None}
    opened = Database(url, settings.model_copy(update=direct))
    yield opened
    await opened.dispose()


Silence = Callable[[], None]


async def read(database: Database, silence: Silence) -> None:
    silence()
    await database.read().fetch(SELECT_ONE)


async def write(database: Database, silence: Silence) -> None:
    async with database.transaction() as session:
        silence()
        await session.fetch(SELECT_ONE)


async def write_many(database: Database, silence: Silence) -> None:
    async with database.transaction() as session:
        silence()
        await session.copy("periodic_tasks", ["name", "started_at"], [(str(uuid4()), NOW)])


async def write_by_orm(database: Database, silence: Silence) -> None:
    async with database.orm_transaction() as session:
        await session.exec(select(PeriodicTaskStart))
        silence()
        await session.exec(select(PeriodicTaskStart))


async def stream(database: Database, silence: Silence) -> None:
    async with database.snapshot() as session:
        silence()
        async for _ in session.batches(SELECT_ONE, {}, 1):
            pass


@pytest.mark.parametrize("behind_pooler", [False, True])
@pytest.mark.parametrize("use", [read, write, write_many, write_by_orm, stream])
async def test_a_statement_without_an_answer_is_given_up(
    opened: Database, proxy: Proxy, use: Callable[[Database, Silence], Awaitable[None]]
) -> None:
    async with within(20, "the end of the statement, and another"):
        await use(opened, lambda: None)
        with pytest.raises(Unavailable, match=CONNECTION_LOST):
            await use(opened, proxy.drop_server_connections)
        await use(opened, lambda: None)


async def test_a_commit_without_an_answer_is_of_unknown_outcome(
    opened: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "COMMIT_SECONDS", 0.2)

    async def write_and_commit() -> None:
        async with opened.transaction() as session:
            await session.fetch(SELECT_ONE)
            proxy.drop_server_connections()

    async with within(20, "the end of the transaction"):
        with pytest.raises(Unavailable, match=OUTCOME_UNKNOWN):
            await write_and_commit()


async def test_a_statement_that_may_take_long_is_waited_for(opened: Database) -> None:
    sleep = text("SELECT pg_sleep(1)")
    with pytest.raises(QueryCanceledError):
        await opened.read().fetch(sleep)
    async with opened.transaction() as session:
        await session.allow(statement=30)
        assert await session.fetch_value(text("SHOW lock_timeout")) == "3s"
        await session.execute(sleep)
        await session.orm.exec(select(func.pg_sleep(1)))
        await session.allow(statement=30, lock=20)
        assert await session.fetch_value(text("SHOW lock_timeout")) == "20s"


async def test_what_one_transaction_allows_is_of_no_other(opened: Database, proxy: Proxy) -> None:
    async with opened.transaction() as session:
        await session.allow(statement=30)
    async with within(20, "the end of the statement"):
        with pytest.raises(Unavailable, match=CONNECTION_LOST):
            await write(opened, proxy.drop_server_connections)


async def test_a_batch_is_given_up_and_started_again(app: FastAPI, proxy: Proxy) -> None:
    done = asyncio.Event()
    batches = 0

    async def work(app: FastAPI) -> int:
        nonlocal batches
        batches += 1
        async with database_of(app).transaction() as session:
            if batches == 1:
                proxy.drop_server_connections()
            await session.fetch(SELECT_ONE)
        done.set()
        return 0

    task = Task(name="probe", run=work, every=0.1)
    async with within(20, "the second batch"), task_runner(app, [task], run_until_idle):
        await done.wait()
    assert batches >= 2
