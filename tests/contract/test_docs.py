"""`/docs` works without internet access."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from tests.kit import Server, free_port
from tests.serving import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REFERENCE = re.compile(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""")


async def test_the_page_refers_to_nothing_elsewhere(anonymous: AsyncClient) -> None:
    page = await anonymous.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    references = REFERENCE.findall(page.text)
    assert len(references) >= 4
    for reference in references:
        assert reference.startswith("/"), reference
        assert not reference.startswith("//"), reference
        assert (await anonymous.get(reference)).status_code == 200, reference
    assert "/openapi.json" in references


async def test_the_page_allows_itself_nothing_elsewhere(anonymous: AsyncClient) -> None:
    for path in ("/docs", "/docs/oauth2-redirect"):
        policy = (await anonymous.get(path)).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy
        assert "*" not in policy


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.verify
def test_a_browser_renders_it(
    app: FastAPI, server: Server, database_url: str, tmp_path: Path
) -> None:
    settings = {"env": "test", "database_url": database_url}
    with serving(tmp_path, free_port(), settings) as served:
        done = subprocess.run(
            [
                str(CHROMIUM),
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--enable-logging=stderr", "--virtual-time-budget=20000"),
                f"--user-data-dir={tmp_path / 'browser'}",
                *("--dump-dom", f"{served.address}/docs"),
            ],
            capture_output=True,
            text=True,
        )
    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            shown = f'id="operations-{operation["tags"][0]}-{operation["operationId"]}"'
            assert shown in done.stdout, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert console == [], "the page complains in the browser's console"
