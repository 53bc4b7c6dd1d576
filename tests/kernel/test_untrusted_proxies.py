"""A proxy whose `X-Forwarded-For` is not believed is named in the log, once a process."""

import pytest
from httpx import ASGITransport, AsyncClient
from structlog.testing import capture_logs

from app.main import create_app
from shared.settings import Settings

PEER, CLIENT = "198.51.100.9", "203.0.113.7"


@pytest.mark.parametrize(
    ("trusted", "header", "value", "warnings"),
    [
        ((), "X-Forwarded-For", CLIENT, 1),
        ((), "Forwarded", f"for={CLIENT}", 1),
        (("10.0.0.0/8",), "X-Forwarded-For", CLIENT, 1),
        ((PEER,), "X-Forwarded-For", CLIENT, 0),
        ((PEER,), "X-Forwarded-For", f"{CLIENT}:51234", 0),
        ((PEER,), "X-Forwarded-For", "", 0),
        ((), "X-Other", CLIENT, 0),
    ],
)
async def test_the_first_request_of_a_proxy_that_is_not_trusted_is_logged(
    settings: Settings, trusted: tuple[str, ...], header: str, value: str, warnings: int
) -> None:
    app = create_app(settings.model_copy(update={"trusted_proxies": trusted}), run_tasks=False)
    transport = ASGITransport(app, client=(PEER, 4711))
    async with AsyncClient(transport=transport, base_url="http://testserver") as client:
        with capture_logs() as logged:
            for _ in range(3):
                await client.get("/healthz", headers={header: value})
    found = [line for line in logged if line["event"] == "proxy_not_trusted"]
    assert [line["address"] for line in found] == [PEER] * warnings
    assert all("APP_TRUSTED_PROXIES" in line["advice"] for line in found)
