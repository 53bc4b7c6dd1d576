"""API processes, workers and Redis are killed while clients write."""

import asyncio
import secrets
import sys

import pytest
from redis.asyncio import Redis

from tests.kit import LONG, eventually, within
from tests.resilience.conftest import Report, Stack
from tests.resilience.load import WITHIN_SECONDS, audit, under_load
from tests.serving import ROOT, environment, kill

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.verify,
]
KILLS = 10 if LONG else 2
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


async def test_workers_killed_in_mid_batch_leave_every_item_indexed(
    stack: Stack, report: Report
) -> None:
    stack.endpoint.fault = "slow"  # so that the worker can be killed during a batch
    try:
        async with under_load(stack.address) as load:
            for _ in range(KILLS):
                await _killed_in_mid_batch(stack)
            load.end_fault()
            await load.wait_for_writes()
    finally:
        stack.endpoint.fault = None
    await audit(load, stack.database_url)
    report(f"Worker killed in mid-batch, {KILLS} times", load)


async def _killed_in_mid_batch(stack: Stack) -> None:
    key = secrets.token_hex(8)  # identifies this worker to the endpoint
    settings = stack.settings | {"embedding_api_key": key}
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app", "worker", cwd=ROOT, env=environment(settings)
    )
    try:

        def at_work() -> bool:
            assert worker.returncode is None, f"the worker ended with {worker.returncode}"
            return f"Bearer {key}" in stack.endpoint.callers

        await eventually(at_work, "a batch of the worker", WITHIN_SECONDS)
    finally:
        if worker.returncode is None:
            worker.kill()
        async with within(30, "the end of the killed worker"):
            await worker.wait()


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
