"""`python -m app openapi`."""

import json

import typer

from app.main import create_app
from shared.settings import Settings, load_settings

commands = typer.Typer()


@commands.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    settings = load_settings(Settings).model_copy(update={"database_url": "postgresql://unused"})
    typer.echo(json.dumps(create_app(settings).openapi(), indent=2, ensure_ascii=False))
