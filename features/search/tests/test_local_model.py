"""The packaged model, while the process that runs it stops."""

import asyncio
import threading
from typing import Any

import pytest

from features.search.embedding import EmbeddingUnavailable, local
from features.search.embedding.local import LocalEmbedder


async def test_a_batch_under_way_ends_soon_after_the_model_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on, forward = threading.Event(), threading.Event(), local._forward
    runs = 0

    def counted(*inputs: Any) -> Any:
        nonlocal runs
        runs += 1
        begun.set()
        go_on.wait()
        return forward(*inputs)

    monkeypatch.setattr(local, "_forward", counted)
    embedder = LocalEmbedder(None, threads=1)
    batch = asyncio.create_task(embedder.embed_documents(["a long text " * 100] * 20))
    await asyncio.to_thread(begun.wait)
    await embedder.close()
    go_on.set()
    with pytest.raises(EmbeddingUnavailable):
        await batch
    assert runs == 1
