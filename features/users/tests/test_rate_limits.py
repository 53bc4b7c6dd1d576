"""Rate limits per address, account and API key; in one process, and shared through Redis."""

import time
from uuid import uuid4

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from time_machine import TimeMachineFixture

from features.users.tests.conftest import (
    EMAIL,
    by_password,
    by_refresh,
    register,
    running_app,
    tokens_of,
)
from features.users.tests.test_api_keys import new_key
from shared.settings import Settings
from shared.web import rate_limits
from tests.kit import PASSWORD, Redis

RATES = {
    "APP_RATE_SIGN_IN_PER_ADDRESS": "8/minute",
    "APP_RATE_SIGN_IN_PER_ACCOUNT": "3/minute",
    "APP_RATE_REFRESH_PER_ADDRESS": "3/minute",
    "APP_RATE_REGISTER_PER_ADDRESS": "3/hour",
    "APP_RATE_RESET_PER_ADDRESS": "3/hour",
    "APP_RATE_RESET_PER_ACCOUNT": "2/hour",
    "APP_RATE_API_KEY": "3/minute",
}


@pytest.fixture(autouse=True)
def start_of_a_window(time_machine: TimeMachineFixture) -> None:
    """Starts the clock at a full minute, as the windows of limits do: a test that runs for less
    than a minute does not see one end."""
    time_machine.move_to(time.time() // 60 * 60)


@pytest.fixture
def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, rate in RATES.items():
        monkeypatch.setenv(name, rate)
    return settings.model_copy(update={"rate_limiting": True, "trusted_proxies": ("127.0.0.1",)})


async def test_guessing_at_an_account_is_limited_and_says_when_to_come_back(
    anonymous: AsyncClient,
) -> None:
    await register(anonymous)
    for _ in range(3):
        assert (await by_password(anonymous, password="a wrong guess")).status_code == 400
    limited = await by_password(anonymous)
    assert limited.status_code == 429
    assert limited.headers["content-type"] == "application/problem+json"
    wait = int(limited.headers["retry-after"])
    assert 0 < wait <= 120
    assert limited.headers["ratelimit-policy"] == '"sign-in-account";q=3;w=60'
    assert limited.headers["ratelimit"] == f'"sign-in-account";r=0;t={wait}'
    assert limited.json()["detail"] == f"Too many requests; please try again in {wait} s"


async def test_signing_in_is_not_guessing(anonymous: AsyncClient) -> None:
    await register(anonymous)
    for _ in range(6):
        tokens_of(await by_password(anonymous))


async def test_stuffing_many_accounts_from_one_address_is_limited(
    anonymous: AsyncClient,
) -> None:
    answers = [
        (await by_password(anonymous, email=f"user{i}@example.com")).status_code for i in range(10)
    ]
    assert answers == [400] * 8 + [429] * 2


async def test_stuffing_one_account_from_many_addresses_is_limited(
    anonymous: AsyncClient,
) -> None:
    await register(anonymous)
    answers = []
    for i in range(5):
        anonymous.headers["X-Forwarded-For"] = f"203.0.113.{i}"
        answers.append((await by_password(anonymous, password="a wrong guess")).status_code)
    assert answers == [400] * 3 + [429] * 2


async def from_address(app: FastAPI, address: str, email: str) -> int:
    transport = ASGITransport(app, client=(address, 4711))
    async with AsyncClient(transport=transport, base_url="http://testserver") as client:
        return (await by_password(client, email=email)).status_code


async def test_one_network_of_ipv6_is_one_address(app: FastAPI) -> None:
    """A /64 network has 2⁶⁴ addresses."""
    answers = [await from_address(app, f"2001:db8::{i:x}", f"{i}@example.com") for i in range(10)]
    assert answers == [400] * 8 + [429] * 2
    assert await from_address(app, "2001:db8:0:1::1", EMAIL) == 400


async def test_a_site_of_ipv6_has_more_than_one_network_and_a_limit(app: FastAPI) -> None:
    """A /56 network has 256 of /64, a /48 has 65,536: they may have 4 and 16 times as much."""

    async def guess(network: str) -> int:
        return await from_address(app, f"2001:db8:{network}::1", f"{uuid4()}@example.com")

    home = [await guess(f"0:{n:x}") for n in range(33)]
    assert home == [400] * 32 + [429]
    site = [await guess(f"0:{n // 32 + 1:x}{n % 32:02x}") for n in range(97)]
    assert site == [400] * 96 + [429]
    assert await guess("1:0") == 400


async def test_a_client_that_is_refused_uses_up_nothing_of_its_neighbours(app: FastAPI) -> None:
    for n in range(40):
        await from_address(app, "2001:db8::1", f"{n}@example.com")
    assert await from_address(app, "2001:db8:0:1::1", EMAIL) == 400


async def test_an_ipv4_address_is_one_however_it_is_written(app: FastAPI) -> None:
    spellings = ["198.51.100.9", "::ffff:198.51.100.9"] * 5
    answers = [
        await from_address(app, address, f"{i}@example.com") for i, address in enumerate(spellings)
    ]
    assert answers == [400] * 8 + [429] * 2
    assert await from_address(app, "::ffff:198.51.100.10", EMAIL) == 400


async def test_another_spelling_is_the_same_account(anonymous: AsyncClient) -> None:
    answers = [
        (await by_password(anonymous, email=email)).status_code
        for email in (EMAIL, EMAIL.upper(), f" {EMAIL} ", f"Ada <{EMAIL}>")
    ]
    assert answers == [400] * 3 + [429]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/auth/password/reset", {"token": "x", "new_password": "a long enough one"}),
        ("POST", "/auth/email/verify", {"token": "x"}),
    ],
)
async def test_guessing_at_tokens_is_limited(
    anonymous: AsyncClient, method: str, path: str, body: dict[str, str]
) -> None:
    answers = [(await anonymous.request(method, path, json=body)).status_code for _ in range(4)]
    assert answers == [400] * 3 + [429]


async def test_guessing_at_the_current_password_is_limited(anonymous: AsyncClient) -> None:
    await register(anonymous)
    anonymous.headers.update(tokens_of(await by_password(anonymous)).header)
    body = {"current_password": "a wrong guess", "new_password": "another long enough one"}
    answers = [(await anonymous.put("/users/me/password", json=body)).status_code for _ in range(4)]
    assert answers == [403] * 3 + [429]


async def test_signing_in_at_a_provider_is_limited(anonymous: AsyncClient) -> None:
    answers = [(await anonymous.get("/auth/oidc/nobody/login")).status_code for _ in range(9)]
    assert answers == [404] * 8 + [429]
    callback = await anonymous.get("/auth/oidc/nobody/callback", params={"state": "x"})
    assert callback.status_code == 429


async def test_other_limits(anonymous: AsyncClient) -> None:
    await register(anonymous)
    tokens = tokens_of(await by_password(anonymous))
    refreshed = [(await by_refresh(anonymous, tokens.refresh)).status_code for _ in range(4)]
    assert refreshed == [200] * 3 + [429]
    forgot = [
        await anonymous.post("/auth/password/forgot", json={"email": EMAIL}) for _ in range(3)
    ]
    assert [answer.status_code for answer in forgot] == [202, 202, 429]
    registered = [
        await anonymous.post("/users", json={"email": f"{i}@example.com", "password": PASSWORD})
        for i in range(3)
    ]
    assert [answer.status_code for answer in registered] == [201, 201, 429]


async def test_a_key_is_limited_by_itself(anonymous: AsyncClient) -> None:
    await register(anonymous)
    anonymous.headers.update(tokens_of(await by_password(anonymous)).header)
    keys = [(await new_key(anonymous))["key"] for _ in range(2)]
    del anonymous.headers["Authorization"]
    for key in keys:
        answers = [
            (await anonymous.get("/users/me", headers={"X-API-Key": key})).status_code
            for _ in range(4)
        ]
        assert answers == [200] * 3 + [429]


async def test_only_trusted_proxies_are_believed(app: FastAPI) -> None:
    """`X-Forwarded-For` counts only if a trusted proxy sends it."""
    transport = ASGITransport(app, client=("198.51.100.9", 4711))
    async with AsyncClient(transport=transport, base_url="http://testserver") as stranger:
        answers = []
        for i in range(10):
            stranger.headers["X-Forwarded-For"] = f"203.0.113.{i}"
            answers.append((await by_password(stranger, email=f"{i}@example.com")).status_code)
    assert answers == [400] * 8 + [429] * 2


async def test_of_a_chain_of_addresses_the_last_untrusted_counts(anonymous: AsyncClient) -> None:
    """The client can write any addresses before it."""
    answers = []
    for i in range(10):
        anonymous.headers["X-Forwarded-For"] = f"203.0.113.{i}, 198.51.100.9, 127.0.0.1"
        answers.append((await by_password(anonymous, email=f"{i}@example.com")).status_code)
    assert answers == [400] * 8 + [429] * 2


async def test_two_processes_that_share_a_redis_count_together(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "REDIS_TIMEOUT_SECONDS", 5.0)  # for a busy machine
    shared = settings.model_copy(update={"redis_url": redis.url})
    async with running_app(shared) as (_, one), running_app(shared) as (_, two):
        answers = [
            (await by_password(client, email=EMAIL)).status_code for client in (one, two, one, two)
        ]
    assert answers == [400] * 3 + [429]


async def test_a_redis_that_is_gone_limits_in_this_process(settings: Settings) -> None:
    alone = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"})
    async with running_app(alone) as (_, client):
        answers = [(await by_password(client, email=EMAIL)).status_code for _ in range(4)]
    assert answers == [400] * 3 + [429]
