"""Slots are shared fairly: requests and connections, between accounts and between addresses."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext, suppress
from random import Random

import pytest
from fastapi import APIRouter, FastAPI, Request
from httpx import AsyncClient, Response

from shared.auth import requires
from shared.db import database_of
from shared.problems import TooManyRequests, Unavailable
from shared.settings import Settings
from shared.slots import Slot, Slots, StreamSlots, current_holder, current_network
from tests.app_helpers import app_with, assert_problem
from tests.kit import PASSWORD, SignUp, connect, eventually, within

SIZE = 8
probe = APIRouter(prefix="/probe", tags=["probe"])


@probe.get("/held")
async def held(request: Request) -> None:
    request.app.state.held.release()
    await request.app.state.gate.wait()


@probe.get("/held-by-account", dependencies=[requires()])
async def held_by_account(request: Request) -> None:
    await held(request)


@probe.get("/held-connection", dependencies=[requires()])
async def held_connection(request: Request) -> None:
    async with database_of(request.app).primary.connection():
        await held(request)


@probe.get("/held-transaction", dependencies=[requires()])
async def held_transaction(request: Request) -> None:
    async with database_of(request.app).transaction():
        await held(request)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    bounds = {"database_pool_size": 4, "database_pool_timeout": 0.2, "request_timeout": None}
    return settings.model_copy(update={"max_concurrency": SIZE, **bounds})


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    async with app_with(settings, probe) as running:
        running.state.held, running.state.gate = asyncio.Semaphore(0), asyncio.Event()
        yield running


async def hold(
    app: FastAPI, client: AsyncClient, path: str, number: int
) -> list["asyncio.Task[Response]"]:
    """Sends so many requests, and returns once all of them are being answered."""
    tasks = [asyncio.create_task(client.get(path)) for _ in range(number)]
    async with within(30, "requests that are held"):
        for _ in tasks:
            await app.state.held.acquire()
    return tasks


async def end(app: FastAPI, *requests: "asyncio.Task[Response]") -> None:
    app.state.gate.set()
    async with within(30, "the answers to those that were held"):
        assert {(await request).status_code for request in requests} == {200}


def assert_own_share(response: Response) -> None:
    assert "your requests" in assert_problem(response, 429)["detail"]
    assert response.headers["retry-after"] == "1"


async def test_one_address_leaves_half_of_the_requests_to_others(
    app: FastAPI, anonymous: AsyncClient
) -> None:
    requests = await hold(app, anonymous, "/probe/held", SIZE // 2)
    assert_own_share(await anonymous.get("/probe/held"))
    async with connect(app, "192.0.2.1") as other:
        requests += await hold(app, other, "/probe/held", SIZE // 3)
        assert_own_share(await other.get("/probe/held"))
        async with connect(app, "192.0.2.2") as third:
            assert (await third.get("/items")).status_code == 401
            await end(app, *requests)


async def test_a_site_of_ipv6_is_one_address(app: FastAPI) -> None:
    async with AsyncExitStack() as stack:
        requests = []
        for number in range(SIZE // 2):
            address = f"2001:db8:0:{number:x}::1"
            client = await stack.enter_async_context(connect(app, address))
            requests += await hold(app, client, "/probe/held", 1)
        client = await stack.enter_async_context(connect(app, "2001:db8:0:ffff::1"))
        assert_own_share(await client.get("/probe/held"))
        other = await stack.enter_async_context(connect(app, "2001:db8:1::1"))
        assert (await other.get("/items")).status_code == 401
        await end(app, *requests)


async def test_many_accounts_behind_one_address_have_a_share_each(
    app: FastAPI, sign_up: SignUp, anonymous: AsyncClient
) -> None:
    one, two = await sign_up(), await sign_up()
    requests = await hold(app, one, "/probe/held-by-account", SIZE // 2)
    assert_own_share(await one.get("/probe/held-by-account"))
    requests += await hold(app, two, "/probe/held-by-account", SIZE // 3)
    assert (await anonymous.get("/items")).status_code == 401
    await end(app, *requests)


async def test_one_account_behind_many_addresses_has_one_share(
    app: FastAPI, sign_up: SignUp
) -> None:
    client = await sign_up()
    async with AsyncExitStack() as stack:
        requests = []
        for number in range(SIZE // 2):
            address = f"192.0.2.{number}"
            same = await stack.enter_async_context(connect(app, address, headers=client.headers))
            requests += await hold(app, same, "/probe/held-by-account", 1)
        assert_own_share(await client.get("/probe/held-by-account"))
        await end(app, *requests)


async def second_credential(client: AsyncClient, kind: str) -> tuple[dict[str, str], str]:
    """Returns the headers of another API key or session of an account, and what to delete to end
    it."""
    if kind == "API key":
        key = {"name": "A machine", "scopes": ["items:read"]}
        made = (await client.post("/users/me/api-keys", json=key)).json()
        return {"X-API-Key": made["key"]}, f"/users/me/api-keys/{made['id']}"
    email = (await client.get("/users/me")).json()["email"]
    form = {"grant_type": "password", "username": email, "password": PASSWORD}
    token = (await client.post("/auth/token", data=form)).json()["access_token"]
    return {"Authorization": f"Bearer {token}"}, "/auth/sessions"


@pytest.mark.parametrize("kind", ["API key", "session"])
async def test_an_account_that_can_be_told_is_refused_before_its_request_is_routed(
    app: FastAPI, sign_up: SignUp, kind: str
) -> None:
    """And one whose credential has ended is not told: it gets its 401."""
    client, other = await sign_up(), await sign_up()
    headers, url = await second_credential(client, kind)
    async with connect(app, headers=headers) as second:

        async def is_refused() -> bool:
            await second.get("/items")  # the key is known for less than a second
            answer = await second.get("/nowhere")
            if answer.status_code != 404:
                assert_own_share(answer)
            return answer.status_code != 404

        requests = await hold(app, client, "/probe/held-by-account", SIZE // 2 - 1)
        assert not await is_refused()
        requests += await hold(app, client, "/probe/held-by-account", 1)
        await eventually(is_refused, "a refusal before the routing")
        assert (await other.get("/nowhere")).status_code == 404
        await end(app, *requests)
        app.state.gate.clear()
        assert (await client.delete(url)).status_code == 204
        requests = await hold(app, client, "/probe/held-by-account", SIZE // 2)
        assert_own_share(await client.get("/items"))
        assert_problem(await second.get("/items"), 401)
        await end(app, *requests)


@pytest.mark.parametrize("path", ["/probe/held-connection", "/probe/held-transaction"])
async def test_one_account_leaves_connections_to_others(
    app: FastAPI, sign_up: SignUp, path: str
) -> None:
    noisy, quiet = await sign_up(), await sign_up()
    requests = await hold(app, noisy, path, 3)
    assert_own_share(await noisy.get(path))
    requests += await hold(app, quiet, path, 1)
    await end(app, *requests)


async def acquired(slots: Slots, holder: str, order: list[str]) -> None:
    current_holder.set(holder)
    await slots.acquire(30)
    order.append(holder)


async def test_a_slot_goes_to_the_holder_of_the_fewest() -> None:
    slots, order = Slots("probe", 2), list[str]()
    first = [slots.take("noisy"), slots.take("other")]
    waiting = [
        asyncio.create_task(acquired(slots, holder, order))
        for holder in ("noisy", "noisy", "quiet")
    ]
    await asyncio.sleep(0)
    first[1].release()
    await asyncio.wait_for(waiting[2], 30)
    assert order == ["quiet"]
    first[0].release()
    await asyncio.wait_for(waiting[0], 30)
    assert order == ["quiet", "noisy"]
    waiting[1].cancel()


async def test_a_waiter_that_gives_up_leaves_its_slot_to_the_next() -> None:
    slots, order = Slots("probe", 1), list[str]()
    held = slots.take("other")
    waiting = [asyncio.create_task(acquired(slots, holder, order)) for holder in ("one", "two")]
    await asyncio.sleep(0)
    held.release()  # gives it to the first, which is cancelled before it runs
    waiting[0].cancel()
    await asyncio.wait_for(waiting[1], 30)
    assert order == ["two"]
    slots.release("two")
    assert slots.in_use == 0


async def test_who_has_given_up_is_not_waited_for() -> None:
    slots, order = Slots("probe", 1), list[str]()
    held = slots.take("other")
    current_holder.set("noisy")
    for _ in range(3):
        with pytest.raises(Unavailable):
            await slots.acquire(0)
    late = asyncio.create_task(acquired(slots, "noisy", order))
    await asyncio.sleep(0)
    late.cancel()
    await asyncio.wait([late])
    waiting = asyncio.create_task(acquired(slots, "quiet", order))
    await asyncio.sleep(0)
    held.release()
    await asyncio.wait_for(waiting, 30)
    assert order == ["quiet"]


async def test_slots_survive_any_order_of_waits_and_cancellations() -> None:
    slots, random = Slots("probe", 3), Random(7)

    async def use(holder: str) -> None:
        current_holder.set(holder)
        await slots.acquire(random.choice((0, 0.001, 30)))
        try:
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
        finally:
            slots.release(holder)

    users = [asyncio.create_task(use(random.choice("abcd"))) for _ in range(500)]
    for user in random.sample(users, 200):
        await asyncio.sleep(0)
        user.cancel()
    async with within(60, "all who use the slots"):
        await asyncio.wait(users)
    assert slots.in_use == 0
    assert not slots._waiting


async def test_who_waits_in_vain_is_told_why() -> None:
    slots = Slots("probe", 2)
    current_holder.set("noisy")
    await slots.acquire(0)
    with pytest.raises(TooManyRequests):
        await slots.acquire(0)
    slots.take("other")
    with pytest.raises(Unavailable):
        await slots.acquire(0)


def test_work_without_a_holder_is_bound_by_the_size_alone() -> None:
    slots = Slots("probe", 2)
    slots.take(None)
    slots.take(None)
    with pytest.raises(Unavailable):
        slots.take(None)


def test_what_lasts_long_has_a_smaller_share() -> None:
    slots = Slots("probe", 100, most=10)
    for _ in range(10):
        slots.take("noisy")
    with pytest.raises(TooManyRequests):
        slots.take("noisy")


def test_holders_that_take_what_they_can_leave_a_share_to_one_more() -> None:
    slots, holders = Slots("probe", 200), [f"noisy {number}" for number in range(16)]
    held = deque[Slot]()
    for turn in range(10_000):
        with suppress(TooManyRequests, Unavailable):
            held.append(slots.take(holders[turn % len(holders)]))
        if turn % 3 == 0:
            held.popleft().release()
    share = 200 // (len(holders) + 1)
    counts = Counter(slot.holder for slot in held)
    assert max(counts.values()) <= share + 2
    for _ in range(share // 2 - 1):
        slots.take("quiet")


@pytest.mark.parametrize(("network", "waits"), [("noisy", TooManyRequests), ("other", None)])
async def test_many_accounts_of_one_network_have_half_of_what_streams_take(
    network: str, waits: type[Exception] | None
) -> None:
    slots = StreamSlots(40, 0.0)
    async with AsyncExitStack() as held:
        current_network.set("noisy")
        for number in range(20):
            current_holder.set(f"account {number}")
            await held.enter_async_context(slots.hold())
        current_network.set(network)
        current_holder.set("quiet")
        with pytest.raises(waits) if waits else nullcontext():
            await held.enter_async_context(slots.hold())
    async with slots.hold():
        assert not slots.are_scarce


async def test_an_account_that_waits_for_its_share_takes_none_of_its_network() -> None:
    slots = StreamSlots(5, 30.0)
    async with AsyncExitStack() as held:
        current_network.set("office")
        current_holder.set("noisy")
        for _ in range(2):
            await held.enter_async_context(slots.hold())
        waiting = asyncio.create_task(held.enter_async_context(slots.hold()))
        await asyncio.sleep(0)
        current_holder.set("quiet")
        async with slots.hold(0.0):
            waiting.cancel()


async def test_accounts_that_wait_for_the_share_of_their_network_leave_slots_to_others() -> None:
    slots = StreamSlots(40, 30.0)
    async with AsyncExitStack() as held, asyncio.TaskGroup() as waiting:
        current_network.set("noisy")
        for number in range(20):
            current_holder.set(f"account {number}")
            await held.enter_async_context(slots.hold())
        for number in range(20, 60):
            current_holder.set(f"account {number}")
            waiting.create_task(hold_for_a_moment(slots))
        await asyncio.sleep(0)
        current_network.set("other")
        for number in range(8):
            current_holder.set(f"quiet {number}")
            await held.enter_async_context(slots.hold(0.0))
        await held.aclose()
    assert slots._of_holders.in_use == slots._of_networks.in_use == 0


async def hold_for_a_moment(slots: StreamSlots) -> None:
    async with slots.hold():
        await asyncio.sleep(0)


async def test_who_holds_nothing_is_not_told_of_too_many_requests() -> None:
    slots = Slots("streams", 1)
    slot = slots.take("noisy")
    current_holder.set("quiet")
    waiting = asyncio.create_task(slots.acquire(0.0))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0, slot.release)  # after the end of the wait, at once
    with pytest.raises(Unavailable):
        await waiting
