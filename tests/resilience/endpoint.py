"""An embedding endpoint on loopback that fails as real ones do."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.kit import within

DIMENSION = 16


@dataclass
class Endpoint:
    """Answers embedding requests, or fails as `fault` says.

    `fault` is None, `slow`, `hang`, `429`, `500`, `dimension` or `truncated`. `callers` holds the
    `Authorization` headers of all requests.
    """

    url: str = ""
    fault: str | None = None
    callers: set[str] = field(default_factory=set)

    async def answer(self, request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        self.callers.add(request.headers.get("Authorization", ""))
        match self.fault:
            case "slow":
                await asyncio.sleep(0.5)
            case "hang":
                while self.fault == "hang":  # noqa: ASYNC110  # until the test ends the fault
                    await asyncio.sleep(0.05)
            case "429" | "500":
                return JSONResponse({"error": "told to fail"}, int(self.fault))
            case "truncated":
                return Response('{"data": [{"index": 0, "embe', media_type="application/json")
        dimension = DIMENSION + 1 if self.fault == "dimension" else DIMENSION
        data = [
            {"index": index, "embedding": [1.0 + len(text) % 7, *[1.0] * (dimension - 1)]}
            for index, text in enumerate(body["input"])
        ]
        return JSONResponse({"object": "list", "model": body["model"], "data": data})


@asynccontextmanager
async def running_endpoint() -> AsyncIterator[Endpoint]:
    endpoint = Endpoint()
    app = FastAPI()
    app.add_api_route("/v1/embeddings", endpoint.answer, methods=["POST"], response_model=None)
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listener]))
    endpoint.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    try:
        yield endpoint
    finally:
        server.should_exit = True
        async with within(30, "the end of the endpoint"):
            await serving
