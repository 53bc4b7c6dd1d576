"""`python -m app reindex`: moves the index to another model or language without downtime."""

import typer
from rich.console import Console
from rich.progress import Progress

from features.search.embedding import PROBE_TEXT, EmbeddingModel
from features.search.indexing import count_parked, reindex
from features.search.runtime import open_runtime
from features.search.settings import SearchSettings
from shared.cli import run_with_database
from shared.db import Database
from shared.problems import Unavailable
from shared.settings import Settings, load_feature_settings, load_settings

commands = typer.Typer()
console = Console(stderr=True)


@commands.command("reindex")
def reindex_command(context: typer.Context) -> None:
    """Bring the search index to the model and language of the settings. Run it again if it was
    cut off: it continues where it was."""
    model, parked = run_with_database(context, _reindex)
    typer.echo(f"Searching with {model.name} ({model.dimension} dimensions)")
    if parked:
        typer.echo(
            f"Found by their words alone, as the model did not embed them: {parked} items. "
            "GET /search/status tells their owners which and why; another reindex tries them again"
        )


async def _reindex(database: Database) -> tuple[EmbeddingModel, int]:
    settings = load_feature_settings(SearchSettings, load_settings(Settings))
    async with open_runtime(settings, redis_url=None) as runtime:
        model = runtime.embedders.configured
        embedder = runtime.embedders.get(model)
        if embedder is None:
            raise Unavailable(f"The settings do not say how to reach {model.name}")
        await embedder.embed_documents([PROBE_TEXT])
        with Progress(console=console) as progress:
            bar = progress.add_task("indexing", total=None)
            most = 0
            async for step, waiting in reindex(database, embedder, runtime.language):
                most = max(most, waiting)
                progress.update(bar, description=step, total=most, completed=most - waiting)
    return model, await count_parked(database)
