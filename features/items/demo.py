from collections.abc import AsyncIterator
from pathlib import Path

from sqlalchemy import select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.items.formats import Format, parse_rows
from features.items.handlers import import_items
from features.items.tables import ITEMS
from features.users import DEMO_EMAIL, find_user_id
from shared.db import write_session_of
from shared.feature import Demo

DEMO_CATALOGUE = Path(__file__).parent / "demo.jsonl"


async def add_demo_catalogue(session: AsyncSession) -> None:
    """Imports the demo catalogue for the demo account, unless there are items."""
    writing = write_session_of(session)
    owner_id = await find_user_id(writing, DEMO_EMAIL)
    if owner_id is None or await writing.fetch_one(select(ITEMS.c.id).limit(1)):
        return
    await import_items(writing, owner_id, parse_rows(_read_catalogue(), Format.JSON_LINES))


async def _read_catalogue() -> AsyncIterator[bytes]:
    yield DEMO_CATALOGUE.read_bytes()


demo = Demo(
    load=add_demo_catalogue,
    hint='curl -s "{address}/items?limit=3" -H "Authorization: Bearer $TOKEN"',
)
