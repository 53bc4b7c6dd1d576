"""The commands of app/deploy/citus/README.md: a cluster answers as it grows, and its dump on one
server."""

import asyncio
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.main import create_app
from shared.settings import Settings
from tests.citus.test_distribute import fetch
from tests.kit import free_port
from tests.operations.test_backup import (
    Urls,
    answers,
    finish_background_work,
    follow,
    new_database,
    settings_of,
    urls_of,
)
from tests.operations.test_containers import skip_unless_it_works
from tests.repository_copies import ROOT, copy_repository
from tests.resilience.pairs import running_primary
from tests.serving import serving_app
from tests.test_readme import NO_CURL, take_tours

pytestmark = [pytest.mark.verify, pytest.mark.long, pytest.mark.timeout(600), NO_CURL]

GUIDE = (ROOT / "app/deploy/citus/README.md").read_text()
COMPOSE_FILE = "app/deploy/citus/compose.yaml"
PASSWORD = "superuser's"  # with a quote, as those of the other roles
SELECT_WORKERS = "SELECT DISTINCT nodename FROM citus_shards WHERE table_name = 'items'::regclass"
SELECT_WORKER_OF = """
SELECT nodename FROM citus_shards
WHERE shardid = get_shard_id_for_distribution_column('items', '{}'::uuid)
"""


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a coordinator that the guide starts in a copy of the repository."""
    skip_unless_it_works("docker version")
    skip_unless_it_works("docker compose version")
    copy_repository(tmp_path)
    port = free_port()
    variables = {
        "COMPOSE_FILE": COMPOSE_FILE,
        "COMPOSE_PROJECT_NAME": f"tessera-test-{secrets.token_hex(4)}",
        "CITUS_PORT": str(port),
        "POSTGRES_PASSWORD": PASSWORD,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield port
        down = "docker compose --profile * down --volumes --timeout 1"
        subprocess.run(down.split(), cwd=tmp_path, env=os.environ, capture_output=True, check=True)


def test_the_guide_works_as_it_stands(port: int, settings: Settings, tmp_path: Path) -> None:
    urls = urls_of(f"postgresql://postgres:superuser%27s@127.0.0.1:{port}/tessera")
    for recipe in ("start", "nodes", "workers", "tables"):
        said = follow(recipe, tmp_path, urls, GUIDE)
    assert "ok    Citus: 2 workers" in said
    used = settings_of(settings, urls)
    with serving_app(create_app(used, run_tasks=False)) as address:
        take_tours(address, tmp_path)
        asyncio.run(finish_background_work(used))
        expected = answers(address)

        follow("another worker", tmp_path, urls, GUIDE)
        assert workers_of(urls, SELECT_WORKERS) == {"worker1", "worker2", "worker3"}
        assert answers(address) == expected

        owner_id = json.loads(expected["/users/me"])["id"]
        follow("move an owner", tmp_path, urls, GUIDE, OWNER_ID=owner_id)
        assert workers_of(urls, SELECT_WORKER_OF.format(owner_id)) == {"worker3"}
        assert answers(address) == expected

    follow("dump", tmp_path, urls, GUIDE)
    with running_primary() as server:
        single = new_database(server)
        assert "wrong" not in follow("restore", tmp_path, single)
        with serving_app(create_app(settings_of(settings, single), run_tasks=False)) as address:
            assert answers(address) == expected


def workers_of(urls: Urls, statement: str) -> set[str]:
    return {row["nodename"] for row in asyncio.run(fetch(urls.superuser, statement))}
