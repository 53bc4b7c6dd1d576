"""`python -m app reset`."""

import typer

from app.development import EMBEDDED, prepare_database, running_database
from app.discovery import find_features
from app.embedded import delete_data
from shared.settings import ConfigurationError, Settings, load_settings

commands = typer.Typer()


@commands.command()
def reset() -> None:
    """Delete the embedded database of development, and create it again: migrated, with the demo."""
    settings = load_settings(Settings)
    if settings.env != "dev":
        raise ConfigurationError(f"APP_ENV is {settings.env}: only dev has a database to reset")
    if settings.database_url:
        raise ConfigurationError("APP_DATABASE_URL is set: only the embedded database is reset")
    features = find_features()  # first, as one that fails would leave no database
    delete_data(EMBEDDED)
    with running_database(settings) as ready:
        prepare_database(ready, features)
    typer.echo("The database of development is new: migrated, with the demo.")
