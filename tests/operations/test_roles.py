"""`app/deploy/roles.sql`: one role owns the tables and migrates them, the service has another."""

import asyncio
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from asyncpg import InsufficientPrivilegeError
from sqlalchemy.engine import make_url

from app.discovery import find_features
from app.embedded import EmbeddedServer, wheel_binaries
from app.main import create_app
from app.migrations import alembic_config, load_revisions, upgrade
from app.removal import drop_tables
from app.task_runner import periodic_tasks_of
from shared.settings import Settings
from tests.kit import run_until_idle
from tests.operations.test_doctor import doctor
from tests.resilience.pairs import running_primary
from tests.serving import ROOT, serving_app
from tests.test_readme import NO_CURL, take_tours

pytestmark = pytest.mark.verify

PASSWORDS = {"OWNER_PASSWORD": "owner's", "SERVICE_PASSWORD": "service's"}
SELECT_OWNERS = """
SELECT DISTINCT owner::regrole::text FROM (
    SELECT relowner AS owner, oid FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT proowner, oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT typowner, oid FROM pg_type WHERE typnamespace = 'public'::regnamespace
    UNION ALL SELECT cfgowner, oid FROM pg_ts_config WHERE cfgnamespace = 'public'::regnamespace
) AS objects WHERE oid NOT IN (SELECT objid FROM pg_depend WHERE deptype = 'e')
AND oid NOT IN (  -- the types of arrays
    SELECT t.typarray FROM pg_type AS t JOIN pg_depend AS d ON d.objid = t.oid AND deptype = 'e')
"""


@dataclass(frozen=True)
class Roles:
    """The URLs of one database for its superuser, its owner and the service."""

    superuser: str
    owner: str
    service: str


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedServer]:
    with running_primary() as server:
        yield server


@pytest.fixture(scope="module", params=["new", "made by a superuser"])
def roles(postgres: EmbeddedServer, request: pytest.FixtureRequest) -> Roles:
    """A migrated database whose roles have just been created."""
    name = f"test_{secrets.token_hex(4)}"
    superuser = postgres.url(name)
    asyncio.run(execute(postgres.url(), f"CREATE DATABASE {name}"))
    if request.param != "new":
        upgrade(superuser)
    for _ in range(2):
        create_roles(superuser)
    owner = url_of(superuser, "owner")
    upgrade(owner)
    return Roles(superuser, owner, url_of(superuser, "service"))


def url_of(superuser: str, role: str) -> str:
    """Returns the URL of the database for the owner, or the service."""
    url = make_url(superuser).set(username=f"tessera_{role}", password=f"{role}'s")
    return url.render_as_string(hide_password=False)


def create_roles(superuser: str) -> None:
    script = ROOT / "app/deploy/roles.sql"
    psql: list[str | Path] = [wheel_binaries() / "psql", "-X", "-q", "-f", script, superuser]
    done = subprocess.run(
        psql, env=os.environ | PASSWORDS, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@NO_CURL
async def test_the_service_does_all_its_work_with_a_role_that_owns_nothing(
    roles: Roles, settings: Settings, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"database_url": roles.service})
    with serving_app(create_app(settings, run_tasks=False)) as address:
        await asyncio.to_thread(take_tours, address, tmp_path)
    app = create_app(settings, run_tasks=False)
    async with app.router.lifespan_context(app):
        while sum([await run_until_idle(app, task) for task in app.state.tasks]):
            pass
        for periodic in periodic_tasks_of(app.state.features):
            await periodic.run(app)


async def test_the_service_may_not_do_what_an_extension_withholds(roles: Roles) -> None:
    await execute(roles.superuser, "CREATE EXTENSION dblink")
    create_roles(roles.superuser)
    connection = await asyncpg.connect(roles.service)
    with pytest.raises(InsufficientPrivilegeError, match="dblink_connect_u"):
        await connection.execute("SELECT dblink_connect_u('dbname=postgres')")
    await connection.close()
    await execute(roles.superuser, "DROP EXTENSION dblink")


async def test_everything_belongs_to_the_owner(roles: Roles) -> None:
    connection = await asyncpg.connect(roles.superuser)
    owners = [row[0] for row in await connection.fetch(SELECT_OWNERS)]
    await connection.close()
    assert owners == ["tessera_owner"]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more ()",
        "ALTER TABLE users ADD more integer",
        "DROP TABLE users",
        "TRUNCATE users CASCADE",
        "CREATE FUNCTION more() RETURNS int LANGUAGE sql RETURN 1",
        "CREATE EXTENSION citext",
        "CREATE ROLE more",
        "SET ROLE tessera_owner",
        "COPY users TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM pg_authid",
    ],
)
async def test_the_service_reads_and_writes_rows_and_no_more(roles: Roles, statement: str) -> None:
    with pytest.raises(InsufficientPrivilegeError):
        await execute(roles.service, statement)


def test_the_owner_migrates_in_many_sessions_and_drops_each_feature(
    postgres: EmbeddedServer,
) -> None:
    """Each revision in a new session, as after interruptions: a session that has not loaded
    an extension does not know who may change its settings."""
    name = f"test_{secrets.token_hex(4)}"
    asyncio.run(execute(postgres.url(), f"CREATE DATABASE {name}"))
    create_roles(postgres.url(name))
    owner = url_of(postgres.url(name), "owner")
    revisions = [script.revision for script in load_revisions().walk_revisions()]
    for revision in reversed(revisions):
        command.upgrade(alembic_config(owner), revision)
    for feature in reversed(find_features()):
        assert drop_tables(owner, feature.name)


def test_the_doctor_names_a_superuser(roles: Roles, tmp_path: Path) -> None:
    said, status = doctor(tmp_path, roles.superuser)
    assert status == 0
    assert "ok    role: postgres, a superuser; in production let the service have a role" in said
    said, status = doctor(tmp_path, roles.service)
    assert status == 0, said
    assert "ok    role: tessera_service\n" in said


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        (
            "REVOKE DELETE, UPDATE ON items FROM tessera_service",
            "table items: this role may not UPDATE, DELETE",
        ),
        (
            "REVOKE EXECUTE ON FUNCTION search_plain FROM tessera_service, PUBLIC",
            "function search_plain(text): this role may not EXECUTE",
        ),
        (
            "GRANT TRUNCATE, TRIGGER ON items TO tessera_service",
            "table items: this role may also TRUNCATE, TRIGGER",
        ),
        ("GRANT REFERENCES ON users TO PUBLIC", "table users: this role may also REFERENCES"),
    ],
)
def test_the_doctor_names_privileges_that_differ(
    roles: Roles, tmp_path: Path, statement: str, named: str
) -> None:
    """As after a restore without privileges, or a GRANT by hand."""
    asyncio.run(execute(roles.owner, statement))
    said, status = doctor(tmp_path, roles.service)
    as_owner, owner_status = doctor(tmp_path, roles.owner)
    create_roles(roles.superuser)
    assert status == 1
    assert f"wrong {named}" in said
    assert "; run app/deploy/roles.sql" in said
    assert owner_status == 0, as_owner
    said, status = doctor(tmp_path, roles.service)
    assert status == 0, said


def test_the_doctor_names_a_schema_that_the_service_may_create_in(
    roles: Roles, tmp_path: Path
) -> None:
    """As one from before PostgreSQL 15."""
    asyncio.run(execute(roles.superuser, "GRANT CREATE ON SCHEMA public TO PUBLIC"))
    said, status = doctor(tmp_path, roles.service)
    create_roles(roles.superuser)
    assert status == 1
    assert "wrong schema public: this role may also CREATE; run app/deploy/roles.sql" in said
    said, status = doctor(tmp_path, roles.service)
    assert status == 0, said
