"""The packaged model: when its process shuts down, and when one account asks much."""

import asyncio
import threading
from typing import Any

import pytest

from features.search.embedding import EmbeddingUnavailable, local
from features.search.embedding.local import LocalEmbedder
from shared.slots import current_holder
from tests.kit import within


async def test_a_batch_under_way_ends_soon_after_the_model_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on, forward = threading.Event(), threading.Event(), local._forward
    runs = 0

    def counted(*inputs: Any) -> Any:
        nonlocal runs
        runs += 1
        begun.set()
        assert go_on.wait(60), "the model was not closed within 60 s"
        return forward(*inputs)

    monkeypatch.setattr(local, "_forward", counted)
    embedder = LocalEmbedder(None, threads=1)
    batch = asyncio.create_task(embedder.embed_documents(["a long text " * 100] * 20))
    assert await asyncio.to_thread(begun.wait, 30), "no text was embedded within 30 s"
    await embedder.close()
    go_on.set()
    with pytest.raises(EmbeddingUnavailable):
        async with within(60, "the end of the batch"):
            await batch
    assert runs == 1


async def test_queries_of_one_account_leave_the_thread_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on, forward = threading.Event(), local._forward

    def held(*inputs: Any) -> Any:
        assert go_on.wait(60), "the test did not go on within 60 s"
        return forward(*inputs)

    monkeypatch.setattr(local, "_forward", held)
    monkeypatch.setattr(local, "QUERY_SECONDS", 60.0)
    embedder, order = LocalEmbedder(None, threads=1), list[str]()

    async def embed(account: str) -> None:
        current_holder.set(account)
        await embedder.embed_query("a query")
        order.append(account)

    async with within(60, "all vectors"), asyncio.TaskGroup() as group:
        for account in ("noisy",) * 8 + ("quiet",):
            group.create_task(embed(account))
        await asyncio.sleep(0)  # until each of them waits
        go_on.set()
    await embedder.close()
    assert order.index("quiet") < local.QUERY_SLOTS
