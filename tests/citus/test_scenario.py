"""The tour through users, items and search on a cluster: its answers, and that each statement
reads and writes one shard."""

import asyncio
import re
from pathlib import Path

import pytest

from app.main import create_app
from app.task_runner import periodic_tasks_of
from shared.settings import Settings
from tests.citus.test_distribute import fetch
from tests.kit import run_until_idle
from tests.serving import serving_app
from tests.test_readme import NO_CURL, take_tours

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600), NO_CURL]

# Of the statements that Citus has planned, those without the one value of `owner_id`.
SELECT_ON_MANY_SHARDS = """
SELECT DISTINCT query FROM citus_stat_statements
WHERE partition_key IS NULL AND executor = 'adaptive' ORDER BY 1
"""
ON_MANY_SHARDS = {
    r"AS page GROUP BY owner_id ORDER BY owner_id": "background work chooses owners",
    r"SELECT DISTINCT owner_id": "a sweep goes through all owners",
    r"FROM search_owners WHERE weights_version <": "owners whose weights are of an older release",
    r"^SELECT count\(\*\)": "the backlogs of the metrics",
    r"FROM (outbox_changes|idempotency_keys|staged_items)\s.*(created_at|expires_at|import_id) <": (
        "what has expired"
    ),
    r"^INSERT INTO search_(documents|pending)\s": "by the coordinator, from one shard into one",
    r"search_models": "a model is registered or removed for all owners",
    r"^INSERT INTO search_queue \(item_id": "a new model embeds the items of all owners",
    r"^UPDATE search_(queue|pending)\s+SET attempts": "a new model tries again what is parked",
    r"^DELETE FROM search_words$": "a change of the language",
    r"citus|pg_dist|EXTENSION": "Citus itself",
}
VARIABLE = re.compile(
    r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z|\+00:00)?"
    r"|eyJ[\w.-]+|tsk_[\w-]+|\b[\w-]{40,}\b|^(?:date|etag|x-request-id|server):.*$"
    r"|\"hits\":\[.*?\],\"total\":\d+",  # some items wait for their embedding
    re.IGNORECASE | re.MULTILINE,
)


async def tour(settings: Settings, url: str, folder: Path) -> str:
    """Takes the tour, and runs all background tasks; returns its output without the parts that
    differ each time: ids, times and tokens, and hits, which the suite of search compares."""
    settings = settings.model_copy(update={"database_url": url})
    with serving_app(create_app(settings)) as address:
        said = await asyncio.to_thread(take_tours, address, folder)
    app = create_app(settings, run_tasks=False)
    async with app.router.lifespan_context(app):
        while sum([await run_until_idle(app, task) for task in app.state.tasks]):
            pass
        for periodic in periodic_tasks_of(app.state.features):
            await periodic.run(app)
    return VARIABLE.sub("…", said)


async def test_a_cluster_answers_as_one_server_does_and_each_request_reads_one_shard(
    distributed: str, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    await fetch(distributed, "SELECT citus_stat_statements_reset()")
    here = await tour(settings, distributed, tmp_path)
    assert here == await tour(settings, database_url, tmp_path)
    statements = [row["query"] for row in await fetch(distributed, SELECT_ON_MANY_SHARDS)]
    unexpected = [
        statement
        for statement in statements
        if not any(re.search(pattern, statement, re.DOTALL) for pattern in ON_MANY_SHARDS)
    ]
    assert not unexpected, "\n\n".join(unexpected)
