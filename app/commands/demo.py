"""Demo data for a new database, and the lines that `make run` prints."""

from collections.abc import Sequence

from app.discovery import new_database
from shared.feature import Feature
from shared.settings import Settings


async def load_demo(settings: Settings, features: Sequence[Feature]) -> None:
    """Adds the demo rows of each feature that has no rows yet, in one transaction."""
    database = new_database(settings, features)
    try:
        async with database.orm_transaction() as session:
            for feature in features:
                if feature.demo:
                    await feature.demo.load(session)
    finally:
        await database.dispose()


def welcome(address: str, features: Sequence[Feature]) -> str:
    """Returns the text that `make run` prints once the API answers."""
    hints = [feature.demo.hint.format(address=address) for feature in features if feature.demo]
    lines = [f"Tessera answers at {address}   (documentation: {address}/docs)", *hints]
    return "\n".join(f"  {line}" for line in ["", *"\n".join(lines).splitlines()]) + "\n"
