"""Streams of server-sent events end with their credential."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.sse import EventSourceResponse
from httpx import AsyncClient

from app.middleware import event_streams
from shared.auth import Principal, requires
from shared.settings import Settings
from tests.app_helpers import app_with
from tests.kit import open_events, within

probe = APIRouter(prefix="/probe", tags=["probe"])


@probe.get("/numbers", response_class=EventSourceResponse)
async def numbers(_: Annotated[Principal, requires("users:self")]) -> AsyncIterator[int]:
    for number in range(1_000_000):
        yield number
        await asyncio.sleep(0.01)


@probe.get("/public-numbers", response_class=EventSourceResponse)
async def public_numbers() -> AsyncIterator[int]:
    for number in range(3):
        yield number


@pytest.fixture
async def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FastAPI]:
    monkeypatch.setattr(event_streams, "CREDENTIAL_SECONDS", 0.0)
    async with app_with(settings, probe) as running:
        yield running


async def test_a_stream_ends_with_its_credential(client: AsyncClient) -> None:
    async with open_events(client, "/probe/numbers") as lines:
        assert await anext(lines) == "data: 0"
        assert await anext(lines) == "data: 1"
        assert (await client.post("/auth/logout")).status_code == 204
        async with within(10, "the end of the stream"):
            assert [line async for line in lines if not line.startswith("data: ")] == []


async def test_a_stream_for_everybody_has_none(anonymous: AsyncClient) -> None:
    async with open_events(anonymous, "/probe/public-numbers") as lines:
        assert [line async for line in lines] == ["data: 0", "data: 1", "data: 2"]
