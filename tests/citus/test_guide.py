"""The commands of app/deploy/citus/README.md: a cluster answers as it grows, as it goes back to a
restore point, and its dump on one server."""

import asyncio
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from shared.settings import Settings
from tests.citus.test_distribute import fetch
from tests.kit import free_port
from tests.operations.test_backup import (
    ADA,
    Urls,
    answers,
    finish_background_work,
    follow,
    new_database,
    settings_of,
    signed_in,
    urls_of,
)
from tests.operations.test_containers import skip_unless_it_works
from tests.repository_copies import ROOT, copy_repository, run
from tests.resilience.pairs import running_primary
from tests.serving import serving_app
from tests.test_readme import NO_CURL, take_tours

pytestmark = [pytest.mark.verify, pytest.mark.long, pytest.mark.timeout(600), NO_CURL]

GUIDE = (ROOT / "app/deploy/citus/README.md").read_text()
COMPOSE_FILE = "app/deploy/citus/compose.yaml"
WORKERS = {"worker1", "worker2", "worker3"}
NODES = " ".join(("coordinator", *sorted(WORKERS)))
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
        compose(tmp_path, "down", "--volumes", "--timeout=1")


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
        assert workers_of(urls, SELECT_WORKERS) == WORKERS
        assert answers(address) == expected

        owner_id = json.loads(expected["/users/me"])["id"]
        follow("move an owner", tmp_path, urls, GUIDE, OWNER_ID=owner_id)
        assert workers_of(urls, SELECT_WORKER_OF.format(owner_id)) == {"worker3"}
        assert answers(address) == expected

    restore_all_nodes_and_one(used, urls, tmp_path)

    follow("dump", tmp_path, urls, GUIDE)
    with running_primary() as server:
        single = new_database(server)
        assert "wrong" not in follow("restore", tmp_path, single)
        with serving_app(create_app(settings_of(settings, single), run_tasks=False)) as address:
            assert answers(address) == expected


def restore_all_nodes_and_one(used: Settings, urls: Urls, folder: Path) -> None:
    """Checks that all nodes answer as they did at the restore point, and take changes; and that a
    worker, lost while the service runs, answers as it did before."""
    variables = {"NODES": NODES, "RESTORE_POINT": "before-release-7"}
    follow("base backup", folder, urls, GUIDE, **variables)
    with serving_app(create_app(used, run_tasks=False)) as address:
        owners = register_owners(address, urls)
        accounts = [ADA, *owners.values()]
        change_items(address, owners.values())
        asyncio.run(finish_background_work(used))
        expected = [answers(address, account) for account in accounts]
        follow("restore point", folder, urls, GUIDE, **variables)
        change_items(address, accounts)
        asyncio.run(finish_background_work(used))
        for account, before in zip(accounts, expected, strict=True):
            assert answers(address, account) != before

    follow("restore", folder, urls, GUIDE, **variables)
    said = follow("after a recovery", folder, urls, APP_DATABASE_URL=urls.service)
    assert "ok    Citus: 3 workers" in said
    assert "wrong" not in said
    with serving_app(create_app(used, run_tasks=False)) as address:
        assert [answers(address, account) for account in accounts] == expected
        change_items(address, owners.values())
        asyncio.run(finish_background_work(used))
        expected = [answers(address, account) for account in accounts]

        follow("restore point", folder, urls, GUIDE, NODES=NODES, RESTORE_POINT="newest")
        lose("worker1", folder)
        follow("restore", folder, urls, GUIDE, NODES="worker1", RESTORE_POINT="")
        assert [answers(address, account) for account in accounts] == expected
    # Citus would roll back what it has committed, if it reached a node in recovery.
    assert "read-only connections" not in compose(folder, "logs")


def register_owners(address: str, urls: Urls) -> dict[str, dict[str, str]]:
    """Registers accounts until each worker has the rows of one; returns one of each worker."""
    owners: dict[str, dict[str, str]] = {}
    for number in range(50):
        account = {"username": f"owner{number}@example.com", "password": ADA["password"]}
        new = {"email": account["username"], "password": account["password"]}
        registered = httpx.post(f"{address}/users", json=new)
        assert registered.status_code == 201, registered.text
        (worker,) = workers_of(urls, SELECT_WORKER_OF.format(registered.json()["id"]))
        owners.setdefault(worker, account)
        if owners.keys() == WORKERS:
            return owners
    raise AssertionError(f"no owner has rows on {WORKERS - owners.keys()}")


def change_items(address: str, accounts: Iterable[Mapping[str, str]]) -> None:
    """Deletes an item of each account, if it has one, and creates one."""
    for account in accounts:
        with signed_in(address, account) as client:
            for item in client.get("/items").json()["items"][:1]:
                assert client.delete(f"/items/{item['id']}").status_code == 204
            created = client.post("/items", json={"title": "Enamel mug", "price": 5})
            assert created.status_code == 201, created.text


def lose(node: str, folder: Path) -> None:
    """Kills a node, and deletes its data."""
    compose(folder, "kill", node)
    compose(folder, "rm", "--force", node)
    removed = run(folder, "docker", "volume", "rm", f"{os.environ['COMPOSE_PROJECT_NAME']}_{node}")
    assert removed.returncode == 0, removed.stderr


def compose(folder: Path, *command: str) -> str:
    done = run(folder, "docker", "compose", "--profile=*", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def workers_of(urls: Urls, statement: str) -> set[str]:
    return {row["nodename"] for row in asyncio.run(fetch(urls.superuser, statement))}
