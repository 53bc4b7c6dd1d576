"""The embedded PostgreSQL: start, shared use by several processes, kill, and restart."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from app.embedded import (
    DISPOSABLE,
    EmbeddedPostgresError,
    EmbeddedServer,
    embedded_postgres,
    ensure_database,
)
from tests.kit import eventually, wait_until, within
from tests.serving import ROOT, read_line

pytestmark = pytest.mark.verify

VECTOR = {"vector": "SELECT '[1]'::vector"}

STOP_TIMEOUT_SECONDS = 30.0
USER = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, and a child inherits that
from app.embedded import DISPOSABLE, embedded_postgres
with embedded_postgres(Path(sys.argv[1]), DISPOSABLE) as server:
    print(server.url(), flush=True)
    sys.stdin.read()
"""
COMES_AND_GOES = """
import asyncio, sys
from pathlib import Path
import asyncpg
from app.embedded import DISPOSABLE, embedded_postgres
async def ask(url):
    connection = await asyncpg.connect(url)
    await connection.fetchval("SELECT 1")
    await connection.close()
for _ in range(10):
    with embedded_postgres(Path(sys.argv[1]), DISPOSABLE) as server:
        asyncio.run(ask(server.url()))
"""
LEAVES = None  # the process exits by itself, without a signal


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's account can access; on /dev/shm if that is writable."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent, prefix="tessera-embedded-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def spawn(script: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, folder],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def use_in_another_process(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Starts a process that uses the server; returns it and the URL that it prints."""
    process = spawn(USER, folder)
    return process, read_line(process, "the URL of the server").strip()


def end(process: subprocess.Popen[str], number: signal.Signals | None) -> None:
    if number is LEAVES:
        process.communicate(timeout=STOP_TIMEOUT_SECONDS)
    else:
        process.send_signal(number)
        process.wait(STOP_TIMEOUT_SECONDS)


def run(url: str, statement: str) -> object:
    async def main() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(main())


def postmaster(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])


def wait_until_gone(pid: int) -> None:
    wait_until(lambda: not is_running(pid), f"the end of the process {pid}", STOP_TIMEOUT_SECONDS)


def wait_until_nothing_is_left(folder: Path) -> None:
    wait_until(lambda: not named(folder), "the end of all processes", STOP_TIMEOUT_SECONDS)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def named(folder: Path, *words: str) -> list[int]:
    """Returns the pids of the processes whose command line has the folder and the words."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            if all(word in command for word in (str(folder), *words)):
                found.append(int(process.name))
    return found


def test_a_server_starts_keeps_its_data_and_stops(folder: Path) -> None:
    with embedded_postgres(folder, DISPOSABLE) as server:
        url = asyncio.run(ensure_database(server, "shop", VECTOR))
        assert asyncio.run(ensure_database(server, "shop", VECTOR)) == url
        run(url, "CREATE TABLE kept AS SELECT '[1,2]'::vector AS v")
        pid = postmaster(folder)
    wait_until_gone(pid)
    with embedded_postgres(folder, DISPOSABLE) as server:
        assert run(server.url("shop"), "SELECT count(*) FROM kept") == 1


@pytest.mark.parametrize("last", [LEAVES, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("first", [LEAVES, signal.SIGKILL])
def test_the_server_ends_with_its_last_user(
    folder: Path, first: signal.Signals | None, last: signal.Signals | None
) -> None:
    starter, url = use_in_another_process(folder)
    joiner, joined = use_in_another_process(folder)
    assert joined == url
    pid = postmaster(folder)
    end(starter, first)
    run(url, "SELECT pg_sleep(0.5)")  # fails if the server stops
    end(joiner, last)
    wait_until_gone(pid)
    wait_until_nothing_is_left(folder)


def test_the_last_user_waits_until_the_server_has_stopped(folder: Path) -> None:
    with embedded_postgres(folder, DISPOSABLE):
        joiner, _ = use_in_another_process(folder)
    pid = postmaster(folder)
    end(joiner, LEAVES)
    assert not is_running(pid)
    assert not named(folder)


def test_of_many_starters_on_an_empty_folder_one_makes_the_server(folder: Path) -> None:
    started = [use_in_another_process(folder) for _ in range(3)]
    assert len({url for _, url in started}) == 1
    for process, _ in started:
        end(process, signal.SIGTERM)


def test_a_user_that_starts_while_another_stops_is_served(folder: Path) -> None:
    for process in [spawn(COMES_AND_GOES, folder) for _ in range(3)]:
        process.communicate(timeout=100)
        assert process.returncode == 0
    assert not named(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_server_ends_with_its_only_user(folder: Path, number: signal.Signals) -> None:
    process, _ = use_in_another_process(folder)
    pid = postmaster(folder)
    end(process, number)
    wait_until_gone(pid)


def test_a_server_whose_starter_is_killed_before_it_is_ready_ends(folder: Path) -> None:
    process = spawn(USER, folder)
    wait_until(lambda: named(folder, "postgres", "-D"), "the start of PostgreSQL", 60)
    end(process, signal.SIGKILL)
    wait_until_nothing_is_left(folder)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("last", [LEAVES, signal.SIGKILL])
def test_a_watcher_may_be_killed(folder: Path, which: int, last: signal.Signals | None) -> None:
    process, url = use_in_another_process(folder)
    wait_until(lambda: len(named(folder, "watcher")) == 2, "the second watcher", 60)
    os.kill(sorted(named(folder, "watcher"))[which], signal.SIGKILL)
    run(url, "SELECT pg_sleep(0.5)")  # fails if the server stops
    end(process, last)
    wait_until_nothing_is_left(folder)


def test_after_a_kill_of_postgres_the_next_start_recovers(folder: Path) -> None:
    durable = {**DISPOSABLE, "fsync": "on", "synchronous_commit": "on"}
    with embedded_postgres(folder, durable) as server:
        run(server.url(), "CREATE TABLE kept AS SELECT 1 AS n")
        pid = postmaster(folder)
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
        with embedded_postgres(folder, durable) as again:
            assert run(again.url(), "SELECT n FROM kept") == 1


async def compute_forever(url: str) -> int:
    """Returns the pid of a backend in an endless loop, which does not notice that its client has
    disconnected."""
    busy, observer = await asyncpg.connect(url), await asyncpg.connect(url)
    pid: int = busy.get_server_pid()
    computing = asyncio.create_task(busy.execute("DO $$ BEGIN LOOP END LOOP; END $$"))
    active = "SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'active'"
    await eventually(lambda: observer.fetch(active, pid), "a backend that computes", 30)
    busy.terminate()
    async with within(30, "the end of the client"):
        await asyncio.gather(computing, return_exceptions=True)
    await observer.close()
    return pid


def test_after_a_kill_the_next_start_ends_who_still_computes(folder: Path) -> None:
    with embedded_postgres(folder, DISPOSABLE) as server:
        orphan = asyncio.run(compute_forever(server.url()))
        try:
            pid = postmaster(folder)
            os.kill(pid, signal.SIGKILL)
            wait_until_gone(pid)
            with embedded_postgres(folder, DISPOSABLE) as again:
                assert run(again.url(), "SELECT 1") == 1
                assert not is_running(orphan)
        finally:
            if is_running(orphan):
                os.kill(orphan, signal.SIGKILL)


def test_a_stale_pid_file_that_names_another_process_is_passed_over(folder: Path) -> None:
    with embedded_postgres(folder, DISPOSABLE):
        stale = (folder / "data" / "postmaster.pid").read_text()
    ours = str(os.getpid())
    (folder / "data" / "postmaster.pid").write_text(stale.replace(stale.split()[0], ours, 1))
    with embedded_postgres(folder, DISPOSABLE) as server:
        assert run(server.url(), "SELECT 1") == 1


def test_a_bad_setting_is_told_in_the_words_of_postgres(folder: Path) -> None:
    with (
        pytest.raises(EmbeddedPostgresError, match="shared_buffers"),
        embedded_postgres(folder, {**DISPOSABLE, "shared_buffers": "plenty"}),
    ):
        pass


def test_data_of_another_major_version_is_refused(folder: Path) -> None:
    with embedded_postgres(folder, DISPOSABLE):
        pass
    (folder / "data" / "PG_VERSION").write_text("12\n")
    with (
        pytest.raises(EmbeddedPostgresError, match=r"belongs to PostgreSQL 12, but \d+"),
        embedded_postgres(folder, DISPOSABLE),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as somebody else")
def test_as_root_below_a_private_folder_nothing_is_opened(tmp_path: Path) -> None:
    private = tmp_path / "home"
    private.mkdir(mode=0o700)
    root = private / "clone" / ".data" / "postgres"
    try:
        with embedded_postgres(root, DISPOSABLE) as server:
            run(server.url(), "CREATE TABLE kept AS SELECT 1 AS n")
        with embedded_postgres(root, DISPOSABLE) as server:
            assert run(server.url(), "SELECT n FROM kept") == 1
        assert private.stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree((root / "server").resolve())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_an_ordinary_account_needs_no_home(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    become = f"import os; os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})"
    if python := shutil.which("python3", path=os.defpath):  # others may not access ours
        become += f"; sys.executable = {python!r}"
    script = USER.replace("with embedded", f"{become}\nwith embedded")
    done = subprocess.run(
        [sys.executable, "-c", script, folder],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("postgresql://"), done.stderr


def test_the_password_is_private(folder: Path) -> None:
    with embedded_postgres(folder, DISPOSABLE) as server:
        assert isinstance(server, EmbeddedServer)
        assert (folder / "password").stat().st_mode & 0o777 == 0o600
        wrong = server.url().replace(server.password, "guess")
        with pytest.raises(asyncpg.InvalidPasswordError):
            run(wrong, "SELECT 1")


def test_the_log_is_private_and_has_no_values_of_rows(folder: Path) -> None:
    log = folder / "server.log"
    log.write_text("")
    log.chmod(0o644)
    with embedded_postgres(folder, DISPOSABLE) as server:
        run(server.url(), "CREATE TABLE people (email text UNIQUE)")
        insert = "INSERT INTO people SELECT 'ada' || '@example.com' FROM generate_series(1, 2)"
        with pytest.raises(asyncpg.UniqueViolationError, match="people_email_key"):
            run(server.url(), insert)
    assert "people_email_key" in log.read_text()
    assert "ada@example.com" not in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o007 == 0
