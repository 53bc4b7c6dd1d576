"""The demo of each feature is added once: to a new database, or when the feature is added."""

from sqlalchemy import text

from app.development import load_demo
from app.discovery import find_features, new_database
from shared.settings import Settings

COUNT = text("SELECT count(*) FROM items")


async def count_items(settings: Settings) -> int:
    database = new_database(settings, ())
    try:
        return int(await database.read().fetch_value(COUNT))
    finally:
        await database.dispose()


async def test_a_feature_that_is_added_later_brings_its_demo(settings: Settings) -> None:
    await load_demo(settings, find_features("users"))
    assert await count_items(settings) == 0
    await load_demo(settings, find_features())
    assert await count_items(settings) > 0


async def test_what_was_deleted_of_a_demo_stays_deleted(settings: Settings) -> None:
    features = find_features()
    await load_demo(settings, features)
    demo = await count_items(settings)
    database = new_database(settings, ())
    async with database.transaction() as session:
        await session.execute(
            text("DELETE FROM items WHERE id = (SELECT min(id::text)::uuid FROM items)")
        )
    await database.dispose()
    await load_demo(settings, features)
    assert await count_items(settings) == demo - 1
