"""A fake embeddings endpoint on the loopback interface, whose failures a test can configure."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.kit import within


@dataclass
class Endpoint:
    """An OpenAI-compatible endpoint. A text's vector is the sum of one vector per word, so that
    texts with common words are near each other.

    Attributes:
        dimension: the dimension of the vectors.
        failures: statuses and headers of the first answers, one per request.
        poison: a word that the endpoint fails to embed; any request with it fails.
        reaction: the response to such a request: `400`, `500`, `null` or `hang`.
        meanwhile: a callback that is awaited between a request and its answer.
        requests: the texts of each request so far.
    """

    url: str = ""
    dimension: int = 64
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    poison: str | None = None
    reaction: str = "400"
    meanwhile: Callable[[], Awaitable[object]] | None = None
    requests: list[list[str]] = field(default_factory=list)

    def embed(self, text: str) -> list[float]:
        words = text.lower().split()
        seeds = [
            int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") for word in words
        ]
        vectors = [np.random.default_rng(seed).normal(size=self.dimension) for seed in seeds]
        values: list[float] = np.sum(vectors, axis=0).tolist()
        return values

    async def answer(self, request: Request) -> Response:
        if self.failures:
            status, headers = self.failures.pop(0)
            return JSONResponse({"error": "told to fail"}, status, headers)
        body: dict[str, Any] = await request.json()
        self.requests.append(body["input"])
        if self.meanwhile:
            await self.meanwhile()
        poisoned = [self.poison is not None and self.poison in text for text in body["input"]]
        if any(poisoned):
            if self.reaction == "hang":
                while not await request.is_disconnected():  # noqa: ASYNC110  # Starlette offers no event to await
                    await asyncio.sleep(0.05)
            if self.reaction != "null":
                status = 400 if self.reaction == "400" else 500
                return JSONResponse({"error": f"cannot embed {self.poison}"}, status)
        data = [
            {"object": "embedding", "index": index, "embedding": None if bad else self.embed(text)}
            for index, (text, bad) in enumerate(zip(body["input"], poisoned, strict=True))
        ]
        return JSONResponse({"object": "list", "model": body["model"], "data": data[::-1]})


@asynccontextmanager
async def running_endpoint() -> AsyncIterator[Endpoint]:
    endpoint = Endpoint()
    app = FastAPI()
    app.add_api_route("/v1/embeddings", endpoint.answer, methods=["POST"], response_model=None)
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))  # accepts connections before uvicorn runs
    serving = asyncio.create_task(server.serve([listener]))
    endpoint.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    try:
        yield endpoint
    finally:
        server.should_exit = True
        async with within(30, "the end of the endpoint"):
            await serving
