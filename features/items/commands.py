"""`python -m app import` and `export`: the same use-cases as over HTTP, with a progress bar."""

import gzip
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import Progress
from rich.progress import open as open_with_progress
from sqlalchemy import bindparam, func, select

from features.items.formats import Format, parse_rows, write_items
from features.items.formats.gzip import gunzip
from features.items.formats.rows import Rejected, RowBatches
from features.items.handlers import export_items, import_items
from features.items.schemas import ImportReport, ItemPublic
from features.items.tables import ITEMS
from features.users import find_user_id
from shared.cli import run_with_database
from shared.db import Database, ReadSession
from shared.problems import NotFound, Unprocessable

commands = typer.Typer()
console = Console(stderr=True)

CHUNK_BYTES = 1 << 16
COUNT_ITEMS = select(func.count().label("total")).where(ITEMS.c.owner_id == bindparam("owner_id"))
SUFFIXES = {".jsonl": Format.JSON_LINES, ".ndjson": Format.JSON_LINES, ".csv": Format.CSV}

File = Annotated[Path, typer.Argument(help="*.jsonl or *.csv, also with .gz appended")]
Owner = Annotated[str, typer.Option(help="The email of the account")]


@commands.command("import")
def import_command(
    context: typer.Context,
    file: File,
    owner: Owner,
    dry_run: Annotated[bool, typer.Option(help="Report what would happen, change nothing")] = False,
) -> None:
    """Add or replace an account's items from a file, by external_id."""
    report = run_with_database(context, lambda database: _import(database, file, owner, dry_run))
    counts = report.model_dump(exclude={"errors"})
    typer.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))


async def _import(database: Database, file: Path, owner: str, dry_run: bool) -> ImportReport:
    format_ = _format_of(file)
    owner_id = await _owner_id(database.read(), owner)
    with open_with_progress(file, "rb", description=file.name, console=console) as source:
        chunks = _read_chunks(source)
        rows = parse_rows(gunzip(chunks) if file.suffix == ".gz" else chunks, format_)
        return await import_items(database, owner_id, _report_rejected(rows, file), dry_run=dry_run)


async def _report_rejected(batches: RowBatches, file: Path) -> RowBatches:
    """Prints each rejected row as it is parsed: the report holds only the first 1,000."""
    async for batch in batches:
        for row in batch:
            if isinstance(row, Rejected):
                typer.echo(f"{file}:{row.line}: {row.detail}", err=True)
        yield batch


@commands.command("export")
def export_command(context: typer.Context, file: File, owner: Owner) -> None:
    """Write all items of an account to a file, oldest first."""
    count = run_with_database(context, lambda database: _export(database, file, owner))
    typer.echo(f"{count} exported")


async def _export(database: Database, file: Path, owner: str) -> int:
    format_, open_file = _format_of(file), gzip.open if file.suffix == ".gz" else open
    owner_id = await _owner_id(database.read(), owner)
    [counted] = await database.read().fetch(COUNT_ITEMS, {"owner_id": owner_id})
    total: int = counted.total
    async with database.snapshot() as session:
        with Progress(console=console) as progress, open_file(file, "wb") as target:
            batches = _track_progress(export_items(session, owner_id), progress, total)
            async for chunk in write_items(batches, format_):
                target.write(chunk)
    return total


async def _track_progress(
    batches: AsyncIterator[Sequence[ItemPublic]], progress: Progress, total: int
) -> AsyncIterator[Sequence[ItemPublic]]:
    task = progress.add_task("items", total=total)
    async for batch in batches:
        yield batch
        progress.advance(task, len(batch))


def _format_of(file: Path) -> Format:
    suffix = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    if suffix not in SUFFIXES:
        raise Unprocessable(f"{file}: the name must end in {', '.join(SUFFIXES)}, or that and .gz")
    return SUFFIXES[suffix]


async def _owner_id(session: ReadSession, email: str) -> UUID:
    owner_id = await find_user_id(session, email)
    if owner_id is None:
        raise NotFound(f"There is no account {email}")
    return owner_id


async def _read_chunks(source: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk
