"""Finds revisions whose SQL would lock, rewrite or break a table in use, with squawk."""

import json
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Literal

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import Script

from shared.feature import FeatureError

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
HELP = {
    rule: f"Call {function} of migrations/operations.py, in a revision of its own."
    for rule, function in (
        ("require-concurrent-index-creation", "create_index_concurrently"),
        ("require-concurrent-index-deletion", "drop_index_concurrently"),
    )
}
"""What to do instead, where it is not what squawk says."""
CONCURRENTLY_BY_HAND = (
    "concurrently-by-hand: It times out behind a long transaction, and leaves an invalid index."
    " Call create_index_concurrently or drop_index_concurrently of migrations/operations.py."
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
    path, lines = Path(script.path), sql.splitlines()
    unsafe = [
        f"{path.name}: {lines[found['line']]}\n  {found['rule_name']}: {found['message']}"
        f" {HELP.get(found['rule_name'], found.get('help')) or ''}".rstrip()
        for found in json.loads(done.stdout)
    ]
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if re.search(r"\bCONCURRENTLY\b|postgresql_concurrently", line):
            unsafe.append(f"{path.name}:{number}: {line.strip()}\n  {CONCURRENTLY_BY_HAND}")
    return unsafe


def sql_of(script: Script, direction: Literal["upgrade", "downgrade"]) -> str:
    """Returns the SQL of a revision, without a database.

    Raises:
        FeatureError: the revision asks the database for something.
    """
    buffer = StringIO()
    options = {"as_sql": True, "output_buffer": buffer, "transactional_ddl": True}
    context = MigrationContext.configure(dialect_name="postgresql", opts=options)
    with context.begin_transaction(), Operations.context(context):
        try:
            getattr(script.module, direction)()
        except Exception as error:
            raise FeatureError(
                f"{script.path}: {direction}() is read without a database, and fails: {error!r}."
                " To update rows, call backfill of migrations/operations.py; for the rest, see"
                " op.get_context().as_sql."
            ) from error
    return buffer.getvalue()
