"""API processes, workers and Redis are killed while clients write."""

import asyncio

import pytest
from redis.asyncio import Redis

from tests.kit import LONG
from tests.resilience.conftest import Report, Stack
from tests.resilience.load import audit, under_load
from tests.serving import kill

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.verify,
]
FROZEN_SECONDS = 10.0 if LONG else 2.0


async def test_two_of_three_killed_replicas_lose_no_acknowledged_write(
    stack: Stack, report: Report
) -> None:
    others = [await stack.start_api(), await stack.start_api()]
    try:
        async with under_load(*(api.address for api in (*stack.apis, *others))) as load:
            for killed in (stack.apis[0], others[0]):
                kill(killed)
            await load.wait_for_writes()  # the remaining replica serves the load
            stack.apis[0] = await stack.start_api(int(stack.address.rsplit(":", 1)[1]))
            load.end_fault()
            await load.wait_for_writes()
    finally:
        for api in others:
            kill(api)
    await audit(load, stack.database_url)
    report("API: two of three replicas killed", load)


@pytest.mark.parametrize("fault", ["killed", "frozen", "flushed"])
async def test_a_fault_of_redis_fails_no_request(stack: Stack, report: Report, fault: str) -> None:
    async with under_load(stack.address) as load:
        match fault:
            case "killed":
                stack.redis.kill()
                await load.wait_for_writes()
                stack.redis.start()
            case "frozen":
                stack.redis.freeze()
                try:
                    await asyncio.sleep(FROZEN_SECONDS)  # the duration of the fault
                    await load.wait_for_writes()
                finally:
                    stack.redis.thaw()
            case "flushed":
                async with Redis.from_url(stack.redis.url) as client:
                    await client.flushall()
        load.end_fault()
        await load.wait_for_writes()
    await audit(load, stack.database_url)
    assert load.failed == 0, load.answers
    report(f"Redis {fault}", load)
