"""The recipe of the README for a recovery to a moment, and the state after it."""

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from app.embedded import EmbeddedServer, embedded_postgres, ensure_database
from app.embedded.home import Home, find_home, run_program
from app.main import create_app
from app.migrations import upgrade
from shared.settings import Settings
from tests.kit import PASSWORD, SECRET_KEY, free_port, wait_until
from tests.operations.test_backup import finish_background_work
from tests.operations.test_doctor import doctor
from tests.repository_copies import ROOT, run_app
from tests.resilience.pairs import SMALL, server_folder
from tests.serving import serving_app
from tests.test_readme import commands_of

pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]

DATABASE = "tessera"
EMAIL = "ada@example.com"
ITEM = {"title": "Mug", "price": 5}
SETTING = re.compile(r"^(\w+) = '?(.*?)'?(?: +#.*)?$", re.MULTILINE)
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Archived:
    """A server whose WAL is archived in `folder`, which stands for the `/backup` of the recipes."""

    server: EmbeddedServer
    home: Home
    folder: Path

    def follow(self, recipe: str, **variables: str) -> None:
        """Runs the commands of a recipe as they stand, as the account of the server."""
        done = subprocess.run(
            ("bash", "-o", "errexit", "-c", self._here(commands_of(recipe))),
            cwd=self.folder,
            env=variables | {"PATH": f"{self.home.binaries}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=100,
            **self.home.account,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _here(self, text: str) -> str:
        return text.replace("/backup", str(self.folder))

    def archive_all(self) -> None:
        """Waits until the archive has all that was written."""
        last = query(self.server.url(), "SELECT pg_walfile_name(pg_switch_wal())")
        wait_until((self.folder / "wal" / last).exists, f"{last} in the archive", TIMEOUT_SECONDS)

    @contextmanager
    def recovered(self, moment: datetime) -> Iterator[EmbeddedServer]:
        """Runs a server that has gone back to this moment, and takes changes."""
        data, server = self.folder / "data", EmbeddedServer(free_port(), self.server.password)
        variables = {"PGDATA": str(data), "PGPORT": str(server.port)}
        self.follow("recovery", MOMENT=moment.isoformat(), **variables)
        try:
            wait_until(
                lambda: not query(server.url(), "SELECT pg_is_in_recovery()"),
                "the end of the recovery",
                TIMEOUT_SECONDS,
            )
            yield server
        finally:
            run_program(self.home, "pg_ctl", "stop", f"--pgdata={data}", "--mode=immediate")


@pytest.fixture
def archived() -> Iterator[Archived]:
    with server_folder() as root:
        home, folder = find_home(root), root / "backup"
        for path in (folder, folder / "wal"):
            path.mkdir()
            if home.account:
                os.chown(path, home.account["user"], home.account["group"])
        archive = dict(SETTING.findall(commands_of("archive").replace("/backup", str(folder))))
        assert archive.keys() == {"archive_mode", "archive_timeout", "archive_command"}
        with embedded_postgres(root, {**SMALL, **archive}) as server:
            yield Archived(server, home, folder)


def query(url: str, statement: str) -> Any:
    async def fetch() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(fetch())


@dataclass
class Ada:
    """A client of one account, which keeps its tokens and an API key."""

    client: httpx.Client
    refresh_token: str = ""
    api_key: str = ""

    def sign_in(self) -> None:
        form = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
        self._take(self.client.post("/auth/token", data=form))

    def refresh(self) -> int:
        form = {"grant_type": "refresh_token", "refresh_token": self.refresh_token}
        answer = self.client.post("/auth/token", data=form)
        if answer.is_success:
            self._take(answer)
        return answer.status_code

    def _take(self, granted: httpx.Response) -> None:
        self.client.headers["Authorization"] = f"Bearer {granted.json()['access_token']}"
        self.refresh_token = granted.json()["refresh_token"]

    def status(self) -> int:
        """Returns the status of a request with the access token."""
        return self.client.get("/items").status_code

    def status_of_key(self) -> int:
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return self.client.get("/items", headers=headers).status_code

    def send_item(self) -> httpx.Response:
        """Creates an item, always with the same idempotency key."""
        return self.client.post("/items", json=ITEM, headers={"Idempotency-Key": "one-mug"})


@contextmanager
def clients_of(settings: Settings) -> Iterator[httpx.Client]:
    with (
        serving_app(create_app(settings, run_tasks=False)) as address,
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        yield client


def test_after_a_recovery_to_a_moment(
    archived: Archived, settings: Settings, tmp_path: Path
) -> None:
    """Each sentence of the README on what follows it."""
    url = asyncio.run(ensure_database(archived.server, DATABASE))
    upgrade(url)
    archived.follow("base backup", SUPERUSER_URL=archived.server.url())
    used = settings.model_copy(update={"database_url": url})
    with clients_of(used) as client:
        client.post("/users", json={"email": EMAIL, "password": PASSWORD})
        ada = Ada(client)
        ada.sign_in()
        created = client.post("/users/me/api-keys", json={"name": "n", "scopes": ["items:read"]})
        ada.api_key = created.json()["key"]
        kept = client.post("/items", json=ITEM).headers["location"]
        moment = query(url, "SELECT clock_timestamp()")

        lost = ada.send_item()
        lost_tag = client.patch(kept, json={"price": 6}).headers["etag"]
        cursor = client.get("/items?limit=1&total=false").json()["next_cursor"]
        asyncio.run(finish_background_work(used))
        assert query(url, "SELECT count(*) FROM outgoing_mail") == 0
        client.delete(f"/users/me/api-keys/{created.json()['id']}")
        client.post("/auth/logout")
        assert (ada.refresh(), ada.status(), ada.status_of_key()) == (400, 401, 401)
    archived.archive_all()

    with archived.recovered(moment) as server:
        url = server.url(DATABASE)
        said, status = doctor(tmp_path, url, APP_SECRET_KEY=SECRET_KEY)
        assert status == 0, said
        used = settings.model_copy(update={"database_url": url})
        with clients_of(used) as client:
            client.headers, ada.client = ada.client.headers, client
            assert (ada.status(), ada.refresh(), ada.status_of_key()) == (200, 200, 200)

            command = ("end-access", "--api-keys")
            done = run_app(
                tmp_path, *command, database=url, PYTHONPATH=str(ROOT), APP_SECRET_KEY=SECRET_KEY
            )
            assert done.stdout == "ended 1 sessions and 1 API keys\n", done.stderr
            wait_until(lambda: ada.status() == 401, "the end of the access token")
            assert (ada.refresh(), ada.status_of_key()) == (400, 401)
            ada.sign_in()

            assert client.get(lost.headers["location"]).status_code == 404
            assert client.get("/items", params={"cursor": cursor}).json()["items"]
            price = {"price": 7}
            refused = client.patch(kept, json=price, headers={"If-Match": lost_tag})
            assert refused.status_code == 412
            read = client.get(kept, headers={"If-None-Match": lost_tag})
            assert (read.status_code, read.json()["price"]) == (200, 5)
            again = ada.send_item()
            assert (again.status_code, client.get("/items").json()["total"]) == (201, 2)
            assert again.json()["id"] != lost.json()["id"]
            # The mails on the account and on the key have been sent, and wait again.
            assert query(url, "SELECT count(*) FROM outgoing_mail WHERE attempts = 0") == 2
