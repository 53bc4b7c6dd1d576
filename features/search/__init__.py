"""Full-text (BM25) and semantic (vector) search over a user's items."""

from features.search.commands import commands
from features.search.router import router
from features.search.runtime import lifespan
from features.search.settings import SearchSettings
from features.search.tables import SearchDocument, SearchEmbedding
from features.search.tasks import embedding_task, statistics_task
from shared.feature import Feature

__all__ = ["SearchDocument", "SearchEmbedding", "feature"]

feature = Feature(
    name="search",
    router=router,
    depends_on=("items",),
    scopes={"search:read": "Search your items"},
    settings=SearchSettings,
    lifespan=lifespan,
    tasks=(statistics_task, embedding_task),
    commands=commands,
    # Long enough for pgvector's vectorised loops
    extensions={
        "vector": """SELECT array_fill(0.5::real, array[100])::vector
        <=> array_fill(0.25::real, array[100])::vector"""
    },
)
