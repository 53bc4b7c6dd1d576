"""Distributes the tables over the workers of Citus: `python -m app distribute`.

Where a table goes follows from its keys. One whose primary key begins with `owner_id` is
distributed by it, and all of them are colocated: the rows of an owner are on one worker. One
without an owner that such a table refers to is copied to every node, a reference table. The others
stay on the coordinator.
"""

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sqlalchemy import NullPool, Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.migrations import lock_migrations
from shared.db.connecting import ServerRole, connector
from shared.db.database import new_engine
from shared.db.sessions import ReadSession
from shared.feature import FeatureError

GUIDE = "app/deploy/citus/README.md"
SESSION = {
    "application_name": "tessera distribute",
    # As in migrations: later requests queue behind a lock that this waits for.
    "lock_timeout": "5s",
    # Citus needs it to fill a table that refers to others, shard by shard; workers read it too.
    "citus.multi_shard_modify_mode": "sequential",
    # Else a table that refers to a new reference table becomes one of Citus's local tables, to
    # which no distributed table can refer.
    "citus.enable_local_reference_table_foreign_keys": "off",
}
HAS_CITUS = text("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')")
# From the coordinator alone, which waits up to `citus.node_connection_timeout` for each worker.
SELECT_UNREACHABLE = text("""
SELECT to_nodename || ':' || to_nodeport FROM citus_check_cluster_node_health()
WHERE result IS NOT TRUE AND (from_nodename, from_nodeport) IN (
    SELECT nodename, nodeport FROM pg_dist_node WHERE groupid = 0)
ORDER BY 1
""")
# As each table is colocated with all others, the shards of one stand for those of each.
SELECT_WORKERS = text("""
SELECT n.nodename || ':' || n.nodeport AS name, (
    SELECT count(*) FROM pg_dist_placement AS p JOIN pg_dist_shard AS s USING (shardid)
    WHERE p.groupid = n.groupid AND s.logicalrelid = (
        SELECT min(logicalrelid::oid) FROM pg_dist_partition WHERE partmethod = 'h')
) AS shards
FROM pg_dist_node AS n WHERE n.isactive AND n.noderole = 'primary' AND n.shouldhaveshards
ORDER BY name
""")
# Without a LEFT JOIN of pg_class, on which Citus 14 fails with PostgreSQL 17.
SELECT_TABLES = text("""
SELECT CAST(CAST(c.oid AS regclass) AS text) AS name,
    EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'owner_id'
    ) AS has_owner,
    coalesce((
        SELECT a.attname = 'owner_id' FROM pg_index AS i
        JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = c.oid AND i.indisprimary
    ), false) AS is_private,
    ARRAY(
        SELECT CAST(CAST(i.indexrelid AS regclass) AS text) FROM pg_index AS i
        WHERE i.indrelid = c.oid AND i.indisunique AND NOT i.indisprimary AND NOT EXISTS (
            SELECT FROM pg_attribute AS a WHERE a.attrelid = i.indrelid
            AND a.attnum = i.indkey[0] AND a.attname = 'owner_id')
        ORDER BY 1
    ) AS other_unique,
    ARRAY(
        SELECT t.tgname FROM pg_trigger AS t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
        ORDER BY 1
    ) AS triggers,
    (
        SELECT CASE WHEN p.partmethod = 'h' THEN 'distributed'
            WHEN p.repmodel = 't' THEN 'reference' END
        FROM pg_dist_partition AS p WHERE p.logicalrelid = c.oid
    ) AS placement,
    EXISTS (
        SELECT FROM pg_dist_shard AS s WHERE s.logicalrelid = c.oid AND NOT EXISTS (
            SELECT FROM pg_dist_placement AS p JOIN pg_dist_node AS n USING (groupid)
            WHERE p.shardid = s.shardid)
    ) AS has_lost_shards,
    pg_relation_size(c.oid) AS local_bytes
FROM pg_class AS c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
ORDER BY name
""")
SELECT_FOREIGN_KEYS = text("""
SELECT c.conname AS name, CAST(CAST(c.conrelid AS regclass) AS text) AS table,
    CAST(CAST(c.confrelid AS regclass) AS text) AS target,
    EXISTS (
        SELECT FROM unnest(c.conkey, c.confkey) AS pair (here, there)
        JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = pair.here
        JOIN pg_attribute AS b ON b.attrelid = c.confrelid AND b.attnum = pair.there
        WHERE a.attname = 'owner_id' AND b.attname = 'owner_id'
    ) AS keeps_owner
FROM pg_constraint AS c
WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace AND c.conparentid = 0
ORDER BY name
""")
# Statements call them on the workers. Those that triggers call stay here, with their tables.
SELECT_FUNCTIONS = text("""
SELECT CAST(CAST(p.oid AS regprocedure) AS text) FROM pg_proc AS p
WHERE p.pronamespace = 'public'::regnamespace AND p.prorettype <> 'trigger'::regtype
AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')
AND NOT EXISTS (
    SELECT FROM pg_dist_object AS o WHERE o.classid = 'pg_proc'::regclass AND o.objid = p.oid)
ORDER BY 1
""")
DISTRIBUTE_FUNCTION = text("SELECT create_distributed_function(:name)")
CREATE_REFERENCE_TABLE = text(
    "SELECT create_reference_table(CAST(CAST(:name AS text) AS regclass))"
)
DISTRIBUTE_TABLE = text("""
SELECT create_distributed_table(
    CAST(CAST(:name AS text) AS regclass), 'owner_id', colocate_with => :anchor)
""")
TRUNCATE_LOCAL_DATA = text("""
SELECT truncate_local_data_after_distributing_table(CAST(CAST(:name AS text) AS regclass))
""")


class NotDistributable(FeatureError):
    """The tables cannot be distributed. Nothing has been changed."""


@dataclass(frozen=True)
class Layout:
    """Where the tables are, and where they belong.

    Attributes:
        workers: the nodes that can have shards, as `host:port`, with the number of shards of each
            table that they have.
        distributed, reference: the tables that are placed already.
        lost: those of them with a shard that is on no node.
        to_distribute, to_copy: those that are to be distributed or made reference tables; each
            comes after those that it refers to.
        violations: why the tables cannot be distributed, a line for each reason.
        local_bytes: the bytes of rows that each placed table still has on the coordinator.
    """

    workers: dict[str, int]
    distributed: Sequence[str]
    reference: Sequence[str]
    lost: Sequence[str]
    to_distribute: Sequence[str]
    to_copy: Sequence[str]
    violations: Sequence[str]
    local_bytes: dict[str, int]

    @property
    def pending(self) -> Sequence[str]:
        return [*self.to_copy, *self.to_distribute]


async def read_layout(connection: AsyncConnection) -> Layout | None:
    """Returns the layout of the database, or None if it has no workers to distribute it over.

    Raises:
        NotDistributable: foreign keys go in a circle.
    """
    if not await connection.scalar(HAS_CITUS):
        return None
    if not (workers := dict(map(tuple, await connection.execute(SELECT_WORKERS)))):
        return None
    tables = {row.name: row for row in await connection.execute(SELECT_TABLES)}
    keys = (await connection.execute(SELECT_FOREIGN_KEYS)).all()
    private = {name for name, table in tables.items() if table.is_private}
    copied = {key.target for key in keys if key.table in private} - private
    order = _referenced_first(tables, [key for key in keys if key.table in private])
    return Layout(
        workers=workers,
        distributed=[name for name in order if tables[name].placement == "distributed"],
        reference=[name for name in order if tables[name].placement == "reference"],
        lost=[name for name in order if tables[name].has_lost_shards],
        to_distribute=[name for name in order if name in private and not tables[name].placement],
        to_copy=[name for name in order if name in copied and not tables[name].placement],
        violations=[*_violations(tables, keys, private, copied)],
        local_bytes={name: row.local_bytes for name, row in tables.items() if row.placement},
    )


def _referenced_first(tables: Iterable[str], keys: Sequence[Row[Any]]) -> list[str]:
    sorter = TopologicalSorter({name: set[str]() for name in tables})
    for key in keys:
        if key.table != key.target:
            sorter.add(key.table, key.target)
    try:
        return [*sorter.static_order()]
    except CycleError as error:
        raise NotDistributable(f"foreign keys in a circle: {', '.join(error.args[1])}") from None


async def shards_by_worker(session: ReadSession) -> dict[str, int]:
    """Returns how many shards of each distributed table a worker has, as `host:port`; nothing
    without Citus. It asks the coordinator alone, so it waits for no worker."""
    if not await session.fetch_value(HAS_CITUS):
        return {}
    return dict(map(tuple, await session.fetch(SELECT_WORKERS)))


async def unreachable_workers(connection: AsyncConnection) -> list[str]:
    """Returns the workers that the coordinator cannot connect to, as `host:port`."""
    return [row[0] for row in await connection.execute(SELECT_UNREACHABLE)]


def _violations(
    tables: dict[str, Row[Any]], keys: Sequence[Row[Any]], private: set[str], copied: set[str]
) -> Iterable[str]:
    """Yields each key and trigger that Citus would refuse, or that would span owners."""
    for name, table in tables.items():
        if table.has_owner and name not in private:
            yield f"{name}: owner_id is not first in its primary key"
        if name in private:
            yield from (f"{name}: owner_id is not first in {each}" for each in table.other_unique)
        if name in private | copied:
            kept = "a distributed table" if name in private else "a reference table"
            yield from (f"{name}: {kept} has no triggers, as {each}" for each in table.triggers)
    for key in keys:
        if key.target in private and key.table not in private:
            yield f"{key.table}: {key.name} refers to {key.target}, which is distributed"
        elif key.target in private and not key.keeps_owner:
            yield f"{key.table}: {key.name} is without owner_id"


async def distribute(url: str) -> AsyncGenerator[str, None]:
    """Distributes the tables that are not distributed yet, in one transaction; yields its progress.

    Until it is committed the tables can be read, and writes to them wait. Then the rows that are
    left on the coordinator are removed.

    Raises:
        NotDistributable: Citus is not installed, has no workers, or a table breaks a rule.
        DBAPIError: Citus refuses, or a lock was not to be had within 5 s. Either nothing has been
            changed, or only rows are left on the coordinator, which the next run removes.
    """
    connect = connector(url, ServerRole.READ_WRITE, server_settings=SESSION)
    engine = new_engine(connect, poolclass=NullPool)
    async with engine.connect() as connection:
        await lock_migrations(connection)
        layout = await _layout_to_distribute(connection)
        for placed, names in (("distributed", layout.distributed), ("reference", layout.reference)):
            if names:
                yield f"{placed} already: {', '.join(names)}"
        if layout.pending:
            started = time.monotonic()
            yield f"writes wait, and reads do not: {', '.join(layout.pending)}"
            await _place(connection, layout)
            await connection.commit()
            yield f"distributed by owner_id: {', '.join(layout.to_distribute) or 'no more'}"
            yield f"reference, on every node: {', '.join(layout.to_copy) or 'no more'}"
            yield f"that took {time.monotonic() - started:.1f} s"
        async for name in _remove_local_rows(connection):
            yield f"removed from the coordinator, as it is distributed: the rows of {name}"


async def _layout_to_distribute(connection: AsyncConnection) -> Layout:
    if not await connection.scalar(HAS_CITUS):
        raise NotDistributable(f"the database has no extension citus; see {GUIDE}")
    layout = await read_layout(connection)
    if layout is None:
        raise NotDistributable(f"Citus has no workers: SELECT citus_add_node(…); see {GUIDE}")
    if layout.violations:
        raise NotDistributable("\n".join(layout.violations))
    return layout


async def _place(connection: AsyncConnection, layout: Layout) -> None:
    for name in layout.to_copy:
        await connection.execute(CREATE_REFERENCE_TABLE, {"name": name})
    anchor = next(iter(layout.distributed), "none")
    for name in layout.to_distribute:
        await connection.execute(DISTRIBUTE_TABLE, {"name": name, "anchor": anchor})
        anchor = name
    for (name,) in (await connection.execute(SELECT_FUNCTIONS)).all():
        await connection.execute(DISTRIBUTE_FUNCTION, {"name": name})


async def _remove_local_rows(connection: AsyncConnection) -> AsyncGenerator[str, None]:
    layout = await read_layout(connection)
    assert layout
    for name, size in layout.local_bytes.items():
        if size:
            await connection.execute(TRUNCATE_LOCAL_DATA, {"name": name})
            await connection.commit()
            yield name
