"""Demo data for a new database: an account with a catalogue."""

from shared.database import open_database
from shared.features import find_features
from shared.sessions import orm_session
from shared.settings import Settings

DEMO_EMAIL = "demo@example.com"
DEMO_PASSWORD = "demo-password"


async def load_demo(settings: Settings) -> None:
    """Adds each feature's demo rows in one transaction; stops at a feature that has rows."""
    assert settings.database_url
    database = open_database(settings.database_url, settings)
    try:
        async with orm_session(database) as session:
            for feature in find_features():
                if feature.demo and not await feature.demo(session):
                    break
    finally:
        await database.dispose()


def welcome(address: str) -> str:
    """Returns the text that `make run` prints once the API answers."""
    return f"""
  Tessera answers at {address}   (documentation: {address}/docs)
  Demo account: {DEMO_EMAIL} with the password {DEMO_PASSWORD}

  Try it:
  TOKEN=$(curl -s {address}/auth/token -d grant_type=password -d username={DEMO_EMAIL} \
-d password={DEMO_PASSWORD} | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/'); \
curl -s "{address}/items?limit=3" -H "Authorization: Bearer $TOKEN"
"""
