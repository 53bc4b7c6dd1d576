"""A demo account with a catalogue, for a first look at an empty database."""

from shared.database import open_database
from shared.features import find_features
from shared.sessions import orm_session
from shared.settings import Settings

DEMO_EMAIL = "demo@example.com"
DEMO_PASSWORD = "demo-password"


async def load_demo(settings: Settings) -> None:
    """Lets each feature add its demo rows, in one transaction, until one has rows already."""
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
    """What `make run` prints once the API answers."""
    return f"""
  Tessera answers at {address}   (documentation: {address}/docs)
  Demo account: {DEMO_EMAIL} with the password {DEMO_PASSWORD}

  Try it:
  TOKEN=$(curl -s {address}/auth/token -d grant_type=password -d username={DEMO_EMAIL} \
-d password={DEMO_PASSWORD} | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/'); \
curl -s "{address}/items?limit=3" -H "Authorization: Bearer $TOKEN"
"""
