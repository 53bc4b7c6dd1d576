"""Search and `reindex` behind pgbouncer in transaction mode."""

import asyncio
import subprocess
import sys

import pytest
from httpx import AsyncClient

from features.search.tests.conftest import Index
from shared.settings import Settings
from tests.operations.pooler import pooled_url, pooler
from tests.serving import ROOT, environment

pytestmark = pytest.mark.verify

__all__ = ["pooled_url", "pooler"]


@pytest.fixture
def settings(settings: Settings, pooled_url: str, database_url: str) -> Settings:
    update = {"database_url": pooled_url, "database_direct_url": database_url}
    return settings.model_copy(update=update)


async def test_an_item_is_found(client: AsyncClient, index: Index) -> None:
    await client.post("/items", json={"title": "Enamel mug", "price": 5})
    await index()
    for query in ("q=enamel&mode=lexical", "q=cup&mode=semantic"):
        found = (await client.get(f"/search?{query}")).raise_for_status().json()
        assert [hit["item"]["title"] for hit in found["hits"]] == ["Enamel mug"]


@pytest.mark.timeout(240)
async def test_a_reindex_goes_past_the_pooler_where_it_must(
    client: AsyncClient, pooled_url: str, database_url: str, settings: Settings
) -> None:
    await client.post("/items", json={"title": "Kettles", "price": 5})
    variables = environment(
        {
            "env": "test",
            "database_url": pooled_url,
            "database_direct_url": database_url,
            "secret_key": settings.secret(),
            "search_language": "simple",
        }
    )
    command = [sys.executable, "-m", "app", "reindex"]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env=variables, capture_output=True, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    status = (await client.get("/search/status")).json()
    assert (status["indexed"], status["pending"]) == (1, 0)
