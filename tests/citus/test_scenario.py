"""The tour through users, items and search on a cluster: its answers, and that each statement
reads and writes one shard."""

import asyncio
import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from app.main import create_app
from app.task_runner import periodic_tasks_of
from shared.settings import Settings
from tests.citus.test_distribute import fetch
from tests.kit import run_until_idle
from tests.serving import serving_app
from tests.test_readme import NO_CURL, take_tours

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600), NO_CURL]

RESET_COUNTERS = """
SELECT citus_stat_statements_reset(),
    citus_stat_counters_reset((SELECT oid FROM pg_database WHERE datname = current_database()))
"""
COUNT_ON_MANY_SHARDS = """
SELECT query_execution_multi_shard FROM citus_stat_counters WHERE name = current_database()
"""
# Of the statements that Citus has planned, those without the one value of `owner_id`.
SELECT_ON_MANY_SHARDS = """
SELECT DISTINCT query FROM citus_stat_statements WHERE partition_key IS NULL ORDER BY 1
"""
ON_MANY_SHARDS = {
    r"AS page GROUP BY owner_id ORDER BY owner_id": "background work chooses owners",
    r"SELECT DISTINCT owner_id": "a sweep goes through all owners",
    r"FROM search_owners WHERE weights_version <": "owners whose weights are of an older release",
    r"^SELECT count\(\*\)": "the backlogs of the metrics",
    r"FROM (outbox_changes|idempotency_keys|staged_items)\s.*(created_at|expires_at|import_id) <": (
        "what has expired"
    ),
    r"INSERT INTO \w+\s.*SELECT .*(owner_id = \$\d|CAST\(\$1 AS uuid\))": (
        "of one owner: Citus does not record the key of an INSERT … SELECT"
    ),
    r"^WITH named AS MATERIALIZED .* WHERE owner_id = \$1 AND import_id = \$2": "of one owner, too",
    r"search_models": "a model is registered or removed for all owners",
    r"^INSERT INTO search_queue \(item_id": "a new model embeds the items of all owners",
    r"^UPDATE search_(queue|pending)\s+SET attempts": "a new model tries again what is parked",
    r"^DELETE FROM search_words$": "a change of the language",
    r"citus|pg_dist|EXTENSION": "Citus itself",
}
VARIABLE = re.compile(
    r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z|\+00:00)?"
    r"|eyJ[\w.-]+|tsk_[\w-]+|\b[\w-]{40,}\b|^(?:date|etag|x-request-id|server):.*$",
    re.IGNORECASE | re.MULTILINE,
)


def tour(app: FastAPI, folder: Path) -> str:
    """Takes the tour, without background tasks; returns its output without the parts that differ
    each time: ids, times and tokens."""
    with serving_app(app) as address:
        return VARIABLE.sub("…", take_tours(address, folder))


async def run_background_work(app: FastAPI) -> None:
    async with app.router.lifespan_context(app):
        while sum([await run_until_idle(app, task) for task in app.state.tasks]):
            pass
        for periodic in periodic_tasks_of(app.state.features):
            await periodic.run(app)


async def test_a_cluster_answers_as_one_server_does_and_each_request_reads_one_shard(
    distributed: str, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    def new_app(url: str) -> FastAPI:
        return create_app(settings.model_copy(update={"database_url": url}), run_tasks=False)

    for url in (database_url, distributed):
        await run_background_work(new_app(url))  # registers the embedding model
    expected = await asyncio.to_thread(tour, new_app(database_url), tmp_path)
    await fetch(distributed, RESET_COUNTERS)

    assert await asyncio.to_thread(tour, new_app(distributed), tmp_path) == expected
    [counted] = await fetch(distributed, COUNT_ON_MANY_SHARDS)
    assert counted[0] == 0

    await run_background_work(new_app(distributed))
    statements = [row["query"] for row in await fetch(distributed, SELECT_ON_MANY_SHARDS)]
    unexpected = [
        statement
        for statement in statements
        if not any(re.search(pattern, statement, re.DOTALL) for pattern in ON_MANY_SHARDS)
    ]
    assert not unexpected, "\n\n".join(unexpected)
