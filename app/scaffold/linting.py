"""Finds revisions whose SQL would lock, rewrite or break a table in use, with squawk."""

import json
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Literal

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import Script

OLDEST_POSTGRES = "17.0"
# Rules of style, not of safety, or solved elsewhere: revisions set lock_timeout themselves, and
# need no statement timeout, as a change of a large table may take long.
IGNORED = (
    "require-statement-timeout",
    "prefer-text-field",
    "prefer-bigint-over-int",
    "prefer-bigint-over-smallint",
    "prefer-identity",
    "prefer-robust-stmts",
)


def unsafe_operations(script: Script) -> list[str]:
    """Returns the operations of an upgrade that are unsafe on a live table, with the reasons.

    A revision accepts a rule on purpose with `ACCEPTED = ("ban-drop-column",)` and a reason.
    """
    accepted = getattr(script.module, "ACCEPTED", ())
    squawk = shutil.which("squawk", path=str(Path(sys.executable).parent))
    assert squawk, "squawk-cli is not installed"
    sql = sql_of(script, "upgrade")
    excluded = ",".join((*IGNORED, *accepted))
    done = subprocess.run(  # noqa: S603  # our own tool and arguments
        [squawk, "--reporter=json", f"--pg-version={OLDEST_POSTGRES}", f"--exclude={excluded}"],
        input=sql,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = sql.splitlines()
    return [
        f"{Path(script.path).name}: {lines[found['line']]}\n  {found['rule_name']}:"
        f" {found['message']} {found.get('help') or ''}".rstrip()
        for found in json.loads(done.stdout)
    ]


def sql_of(script: Script, direction: Literal["upgrade", "downgrade"]) -> str:
    """Returns the SQL of a revision, without a database."""
    buffer = StringIO()
    options = {"as_sql": True, "output_buffer": buffer, "transactional_ddl": True}
    context = MigrationContext.configure(dialect_name="postgresql", opts=options)
    with context.begin_transaction(), Operations.context(context):
        getattr(script.module, direction)()
    return buffer.getvalue()
