from collections.abc import AsyncIterator
from pathlib import Path

from sqlalchemy import select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.items.formats import Format, parse_rows
from features.items.formats.rows import Accepted
from features.items.handlers import delete_staged, merge_rows, stage_rows
from features.items.tables import ITEMS
from features.users import DEMO_EMAIL, find_user_id
from shared.db import write_session_of
from shared.db.tables import uuid7
from shared.feature import Demo

DEMO_CATALOGUE = Path(__file__).parent / "demo.jsonl"


async def add_demo_catalogue(session: AsyncSession) -> None:
    """Imports the demo catalogue for the demo account, unless there are items."""
    writing = write_session_of(session)
    owner_id = await find_user_id(writing, DEMO_EMAIL)
    if owner_id is None or await writing.fetch_one(select(ITEMS.c.id).limit(1)):
        return
    import_id = uuid7()
    rows = [
        row
        async for batch in parse_rows(_read_catalogue(), Format.JSON_LINES)
        for row in batch
        if isinstance(row, Accepted)
    ]
    await stage_rows(writing, owner_id, import_id, rows)
    await merge_rows(writing, owner_id, import_id, staged=len(rows), has_ids=False, dry_run=False)
    await delete_staged(writing, owner_id, import_id)


async def _read_catalogue() -> AsyncIterator[bytes]:
    yield DEMO_CATALOGUE.read_bytes()


demo = Demo(
    load=add_demo_catalogue,
    hint='curl -s "{address}/items?limit=3" -H "Authorization: Bearer $TOKEN"',
)
