"""`python -m app doctor`: lists the features, and checks the installation."""

import asyncio
import platform
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import typer
from alembic.script import ScriptDirectory
from fastapi import FastAPI
from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.development import running_database
from app.discovery import extensions_of, new_database
from app.distribution import GUIDE, NotDistributable, read_layout, unreachable_workers
from app.main import create_app, open_resource
from app.migrations import describe_unknown, load_revisions, schema_state
from app.routing import endpoints, websockets
from app.schema_drift import find_differences
from shared.db import Database
from shared.db.connecting import ServerRole, connector
from shared.db.database import UNNAMED_STATEMENTS, new_engine
from shared.db.errors import CONNECT_ERRORS
from shared.db.tables import table_owners
from shared.feature import Feature
from shared.problems import Unavailable
from shared.settings import Settings, load_settings

TIMEOUT_SECONDS = 3.0
OLDEST_POSTGRES = 17

SELECT_1 = text("SELECT 1")
EXTENSIONS = text("SELECT extname, extversion FROM pg_extension")
ROLE = text("SELECT rolname, rolsuper FROM pg_roles WHERE rolname = current_user")
SUPERUSER = (
    "a superuser; in production let the service have a role that only reads and writes rows"
    " (app/deploy/roles.sql)"
)

NO_PROXIES = (
    "none; behind a proxy that APP_TRUSTED_PROXIES does not list, all clients share its address"
)
AS_MIGRATED = "as the migrations make it"

commands = typer.Typer()


@dataclass(frozen=True)
class Finding:
    """The result of one check: the subject, its state, and whether that is fine."""

    subject: str
    state: str
    ok: bool = True


@commands.command()
def doctor() -> None:
    """Show the slices, and each fault of this installation; exit status 1 if there is one."""
    console = Console()
    settings = load_settings(Settings)
    app = create_app(settings, run_tasks=False)
    console.print(slices(app.state.features))
    with running_database(settings) as ready:
        findings = asyncio.run(_examine(create_app(ready, run_tasks=False), ready))
    for finding in findings:
        mark = "[green]ok[/]   " if finding.ok else "[red]wrong[/]"
        console.print(f"{mark} {finding.subject}: {finding.state}", highlight=False, soft_wrap=True)
    raise typer.Exit(not all(finding.ok for finding in findings))


def slices(features: Sequence[Feature]) -> Table:
    """Returns a table of the features: dependencies, tables, routes, settings and migrations."""
    table = Table("feature", "", "", box=SIMPLE_HEAD)
    revisions, owner_of = load_revisions(), table_owners()
    for feature in features:
        own = sorted(name for name, owner in owner_of.items() if owner == feature.name)
        name = feature.name
        for kind, names in {
            "depends on": ", ".join(feature.depends_on),
            "tables": ", ".join(own),
            "routes": "\n".join(_routes(feature)),
            "settings": ", ".join(_settings(feature)),
            "migrations": ", ".join(_heads(revisions, feature)),
        }.items():
            if names:
                table.add_row(name, kind, names)
                name = ""
        table.add_section()
    return table


def _routes(feature: Feature) -> list[str]:
    methods = defaultdict(list)
    for method, path in endpoints(feature.router):
        methods[path].append(method)
    for path in websockets(feature.router):
        methods[path].append("WEBSOCKET")
    return [f"{path}  {' '.join(names)}" for path, names in methods.items()]


def _heads(revisions: ScriptDirectory, feature: Feature) -> list[str]:
    heads = (revisions.get_revision(head) for head in revisions.get_heads())
    return [head.revision for head in heads if feature.name in head.branch_labels]


def _settings(feature: Feature) -> list[str]:
    if feature.settings is None:
        return []
    prefix = feature.settings.model_config.get("env_prefix", "")
    return [f"{prefix}{name}".upper() for name in feature.settings.model_fields]


async def _examine(app: FastAPI, settings: Settings) -> list[Finding]:
    assert settings.database_url
    app.state.database = database = new_database(settings, app.state.features)
    app.state.revisions = revisions = load_revisions()
    proxies = ", ".join(settings.trusted_proxies) or NO_PROXIES
    findings = [Finding("Python", platform.python_version()), *await _redis(settings)]
    findings.append(Finding("trusted proxies", proxies))
    findings += filter(None, (_branch(revisions, feature) for feature in app.state.features))
    pooler = settings.database_direct_url is not None
    servers = [
        ("", settings.database_url, None if pooler else ServerRole.READ_WRITE),
        (" past the pooler", settings.database_direct_url, ServerRole.READ_WRITE),
        (" of the replica", settings.database_replica_url, None if pooler else ServerRole.STANDBY),
    ]
    try:
        for of, url, role in servers:
            if url:
                findings += await _server(of, url, role, app.state.features, revisions)
        if all(finding.ok for finding in findings):
            findings.append(await _sessions(database))
        if all(finding.ok for finding in findings):
            async with AsyncExitStack() as stack:
                findings += [await _start(app, stack, feature) for feature in app.state.features]
    finally:
        await database.dispose()
    return findings


def _branch(revisions: ScriptDirectory, feature: Feature) -> Finding | None:
    """Returns a finding if a feature's migrations have no head or several, else None."""
    heads = _heads(revisions, feature)
    if len(heads) == 1 or (not heads and feature.name not in table_owners().values()):
        return None
    state = f"{len(heads)} heads, {', '.join(heads)}; let one follow the other" if heads else "none"
    return Finding(f"migrations of {feature.name}", state, ok=False)


async def _server(
    of: str,
    url: str,
    role: ServerRole | None,
    features: Sequence[Feature],
    revisions: ScriptDirectory,
) -> list[Finding]:
    connect = connector(url, role, timeout=TIMEOUT_SECONDS, statement_cache_size=0)
    engine = new_engine(connect, UNNAMED_STATEMENTS)
    try:
        async with engine.connect() as connection:
            version = (await connection.execute(text("SHOW server_version"))).scalar_one()
            role, is_superuser = (await connection.execute(ROLE)).one()
            extensions = await _extensions(connection, of, features)
            schema = await connection.run_sync(schema_state, revisions)
            found = await connection.run_sync(find_differences, features, schema)
            shards = await _citus(connection) if role is not ServerRole.STANDBY else []
    except CONNECT_ERRORS as error:
        return [Finding(f"database{of}", f"cannot be reached: {error}", ok=False)]
    except DBAPIError as error:
        return [Finding(f"database{of}", f"cannot be read: {error.orig}", ok=False)]
    finally:
        await engine.dispose()
    recent = int(version.split(".")[0]) >= OLDEST_POSTGRES
    wanted = "" if recent else f", but {OLDEST_POSTGRES} is the oldest that is tested"
    differences = [Finding(f"{each.subject}{of}", each.advice, ok=False) for each in found]
    waits = f"pending: {', '.join(schema.pending)}" if schema.pending else "done"
    return [
        Finding(f"database{of}", f"PostgreSQL {version}{wanted}", recent),
        Finding(f"role{of}", f"{role}, {SUPERUSER}" if is_superuser else role),
        *extensions,
        *shards,
        Finding(f"migrations{of}", waits, not schema.pending),
        *(
            Finding(f"migrations{of}", describe_unknown(revision, revisions))
            for revision in schema.unknown
        ),
        *([] if schema.pending else differences or [Finding(f"schema{of}", AS_MIGRATED)]),
    ]


async def _extensions(
    connection: AsyncConnection, of: str, features: Sequence[Feature]
) -> list[Finding]:
    """Checks that each extension is there, and runs its statement."""
    installed = dict(map(tuple, await connection.execute(EXTENSIONS)))
    findings = []
    for name, probe in extensions_of(features).items():
        missing = f"not installed in the database; CREATE EXTENSION {name}, as a superuser"
        state, ok = installed.get(name, missing), name in installed
        try:
            async with connection.begin_nested():
                await connection.exec_driver_sql(probe if ok else "SELECT 1")
        except DBAPIError as error:
            state, ok = f"fails: {error.orig}", False
        findings.append(Finding(f"extension {name}{of}", state, ok))
    return findings


async def _citus(connection: AsyncConnection) -> list[Finding]:
    """Checks that the workers answer and have shards, if there are any, and that the tables are
    distributed, without a loss."""
    try:
        layout = await read_layout(connection)
    except NotDistributable as error:
        return [Finding("Citus", str(error), ok=False)]
    if layout is None:
        return []
    faults = [
        f"{worker} does not answer: its owners get 503"
        for worker in await unreachable_workers(connection)
    ]
    if layout.distributed:
        faults += [
            f"{worker} has no shards: SELECT citus_rebalance_start(…), see {GUIDE}"
            for worker, shards in layout.workers.items()
            if not shards
        ]
    if layout.lost:
        faults.append(f"shards that are on no worker: {', '.join(sorted(layout.lost))}")
    if layout.pending:
        pending = ", ".join(sorted(layout.pending))
        faults.append(f"not distributed: {pending}; run `python -m app distribute`")
    shards = ", ".join(map(str, layout.workers.values()))
    fine = (
        f"{len(layout.workers)} workers, {len(layout.distributed)} tables distributed,"
        f" each in shards: {shards}"
    )
    return [Finding("Citus", fault, ok=False) for fault in faults] or [Finding("Citus", fine)]


async def _sessions(database: Database) -> Finding:
    """Checks that each kind of session, with the settings of its pool, runs a statement."""
    kind = "read"
    try:
        await database.read().fetch(SELECT_1)
        kind = "snapshot"
        async with database.snapshot() as snapshot:
            async for _ in snapshot.batches(SELECT_1, {}, 1):
                pass
        kind = "write"
        async with database.transaction() as session:
            await session.fetch(SELECT_1)
        kind = "direct"
        async with database.direct() as connection:
            await connection.execute("SELECT 1")
    except (Unavailable, *CONNECT_ERRORS) as error:
        reason = error.__cause__ or error
        return Finding(f"{kind} session", f"fails: {reason}", ok=False)
    return Finding("sessions", "read, snapshot, write and direct")


async def _start(app: FastAPI, stack: AsyncExitStack, feature: Feature) -> Finding:
    """Checks that a feature can open its resources, such as a model, beside those before it."""
    try:
        await open_resource(app, stack, feature)
        return Finding(feature.name, "starts")
    except Exception as error:  # of any kind: it is the finding
        return Finding(feature.name, f"does not start: {type(error).__name__}: {error}", ok=False)


async def _redis(settings: Settings) -> list[Finding]:
    if settings.redis_url is None:
        missed = ", and so is who has just written" if settings.database_replica_url else ""
        return [Finding("Redis", f"not set: the cache is in each process{missed}")]
    client = Redis.from_url(
        settings.redis_url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
    )
    try:
        async with client:
            return [Finding("Redis", str((await client.info("server"))["redis_version"]))]
    except RedisError as error:
        return [Finding("Redis", f"does not answer: {error}", ok=False)]
