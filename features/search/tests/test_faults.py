"""However the embedding endpoint fails, or a worker ends, search degrades and no write is lost."""

import asyncio
import secrets
import sys

import pytest

from tests.kit import LONG, eventually, within
from tests.resilience.conftest import Report, Stack, report, stack
from tests.resilience.load import WITHIN_SECONDS, audit, under_load
from tests.serving import ROOT, environment

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.verify,
]

__all__ = ["report", "stack"]

KILLS = 10 if LONG else 2


@pytest.mark.parametrize("fault", ["slow", "429", "500", "dimension", "truncated", "hang"])
async def test_a_failing_embedding_endpoint_degrades_search_and_nothing_else(
    stack: Stack, report: Report, fault: str
) -> None:
    async with under_load(stack.address) as load:
        stack.endpoint.fault = fault
        try:
            await load.wait_for_writes()
            if fault != "slow":
                await eventually(
                    lambda: load.degraded > 0, "a search without the model", WITHIN_SECONDS
                )
        finally:
            stack.endpoint.fault = None
        load.end_fault()
        await load.wait_for_writes()
    await audit(load, stack.database_url)
    assert load.failed == 0, load.answers
    report(f"Embedding endpoint: {fault}", load)


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
