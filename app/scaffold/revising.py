"""Writes a revision on a feature's branch: the changes of its tables, and of the functions and
triggers in its .sql files, since the last one."""

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.migration import MigrationContext
from alembic.operations.ops import ExecuteSQLOp
from alembic.script import Script
from sqlalchemy import Enum
from sqlmodel import AutoString, UTCDateTime

from app.discovery import branches_of, find_features
from app.migrations import ROOT, alembic_config, has_revisions, head_of, load_revisions
from app.scaffold.comparing import compare_models
from app.scaffold.definitions import compare_definitions, scratch_database
from app.scaffold.formatting import format_code
from shared.db.tables import table_owners
from shared.feature import FeatureError

WRAPPER = textwrap.TextWrapper(
    80, drop_whitespace=False, replace_whitespace=False, expand_tabs=False
)


class NothingToRevise(FeatureError):
    """The tables of the feature match its revisions."""


def write_revision(server_url: str, feature: str, message: str, *, empty: bool = False) -> Script:
    """Compares the feature's tables with its branch, and writes the difference as a revision.

    The branch and its dependencies are migrated in a temporary database on the server, so that
    neither other features nor the state of a developer's database affect the result. A table
    without a model is ignored: write its DROP TABLE by hand. With `empty`, unchanged tables are no
    error: the revision is for an operation that is written by hand.

    Raises:
        FeatureError: the feature does not exist, or a text search configuration has changed: its
            revision is written by hand.
        NothingToRevise: the tables have not changed. No file has been written.
    """
    needed = () if feature == "shared" else find_features(feature)
    folder = ROOT / feature
    numbers = [int(path.name[:4]) for path in folder.glob("[0-9]*.py")]
    is_first, number = not numbers, 1 + max(numbers, default=0)
    folder.mkdir(exist_ok=True)
    others = [name for name in branches_of(needed) if name not in ("shared", feature)]
    with scratch_database(server_url) as url:
        config = alembic_config(url, ["shared", *others, feature])
        slug = re.sub(r"\W+", "_", message.lower()).strip("_")[:40]
        config.set_main_option("file_template", f"{number:04}_{slug}")
        command.upgrade(config, "heads")
        before, after = asyncio.run(compare_definitions(url, feature))
        config.attributes["autogenerate"] = _hooks(feature, before, after, empty=empty)
        script = command.revision(
            config,
            message,
            autogenerate=True,
            rev_id=f"{feature}_{number:04}",
            version_path=str(folder),
            head="base" if is_first else f"{feature}@head",
            branch_label=feature if is_first else None,
            depends_on=_missing_heads(feature, others),  # type: ignore[arg-type]  # a list is allowed
        )
    if not isinstance(script, Script):
        raise NothingToRevise(f"the tables of {feature!r} are as its migrations make them")
    format_code([Path(script.path)])
    return script


def _missing_heads(feature: str, dependencies: list[str]) -> list[str]:
    """Returns the heads of the dependencies that the branch of the feature does not reach yet.

    So the branch alone can be migrated, although a dependency was declared later, or has changed.
    """
    revisions = load_revisions()
    reached: set[str] = set()
    if has_revisions(feature):
        reached = {each.revision for each in revisions.get_all_current((f"{feature}@head",))}
    elif feature != "shared":
        dependencies = dependencies or ["shared"]
    heads = [head_of(revisions, name) for name in dependencies]
    implied: set[str] = set()
    for head in heads:
        implied |= {each.revision for each in revisions.get_all_current((head,))} - {head}
    return [head for head in heads if head not in reached | implied]


def _hooks(
    feature: str, before: dict[str, str], after: dict[str, str], *, empty: bool
) -> dict[str, Any]:
    """Returns the options that `migrations/env.py` passes to Alembic for the comparison."""
    own = {table for table, owner in table_owners().items() if owner == feature}

    def include(_object: Any, name: str | None, kind: str, *_: Any) -> bool:
        return kind != "table" or name in own

    def complete(context: MigrationContext, _revision: Any, directives: list[Any]) -> None:
        revision = directives[0]
        assert context.connection
        changes = compare_models(context.connection, own)
        revision.upgrade_ops.ops[:0] = changes.before_upgrade
        revision.upgrade_ops.ops += _replace(before, after) + changes.after_upgrade
        revision.downgrade_ops.ops[:0] = changes.before_downgrade + _replace(after, before)
        revision.downgrade_ops.ops += changes.after_downgrade
        if revision.upgrade_ops.is_empty() and not empty:
            directives.clear()

    return {
        "include_object": include,
        "process_revision_directives": complete,
        "render_item": _render_type,
    }


def _replace(old: dict[str, str], new: dict[str, str]) -> list[ExecuteSQLOp]:
    """Returns the operations that make the new definitions of the old."""
    changed = [name for name in new if old.get(name) != new[name]]
    gone = [name for name in reversed(old) if name not in new]
    for name in changed + gone:
        if name.startswith("TEXT SEARCH"):
            raise FeatureError(f"{name} has changed: write its revision by hand")
    statements = [new[name] for name in changed] + [f"DROP {name}" for name in gone]
    return [ExecuteSQLOp(statement) for statement in statements]


@renderers.dispatch_for(ExecuteSQLOp, replace=True)
def _render_definition(_context: AutogenContext, operation: ExecuteSQLOp) -> str:
    """Renders the statement as short strings; escapes what Alembic would read as a parameter."""
    sql = re.sub(r"(?<![:\w\\]):(?=\w)", r"\:", str(operation.sqltext))
    pieces = [piece for line in sql.splitlines(keepends=True) for piece in WRAPPER.wrap(line)]
    return f"op.execute({' '.join(map(repr, pieces))})"


def _render_type(kind: str, item: Any, context: AutogenContext) -> str | bool:
    """Renders SQLModel's types as in a revision written by hand."""
    if kind == "type" and isinstance(item, AutoString):
        return "sa.String()"
    if kind == "type" and isinstance(item, UTCDateTime):
        context.imports.add("import sqlmodel")
        return "sqlmodel.UTCDateTime()"
    if kind == "type" and isinstance(item, Enum) and item.native_enum:  # made by CREATE TYPE
        context.imports.add("from sqlalchemy.dialects import postgresql")
        values = ", ".join(map(repr, item.enums))
        return f"postgresql.ENUM({values}, name={item.name!r}, create_type=False)"
    return False
