"""However the embedding endpoint fails, search degrades and no write is lost."""

import pytest

from tests.kit import eventually
from tests.resilience.conftest import Report, Stack
from tests.resilience.load import WITHIN_SECONDS, audit, under_load

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.verify,
]


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
