"""The declaration of search, for the kernel."""

from features.items import item_changes
from features.search.commands import commands
from features.search.indexing import forget_account, index_change
from features.search.router import router
from features.search.runtime import lifespan
from features.search.settings import SearchSettings
from features.search.tasks import embedding_task, statistics_task, sweep_task
from features.users import account_changes
from shared.db.changes import Subscription
from shared.feature import Feature

feature = Feature(
    name="search",
    router=router,
    depends_on=("users", "items"),
    scopes={"search:read": "Search your items"},
    settings=SearchSettings,
    lifespan=lifespan,
    tasks=(statistics_task, embedding_task),
    periodic_tasks=(sweep_task,),
    subscriptions=(
        Subscription(item_changes, index_change),
        Subscription(account_changes, forget_account, outbox="search_accounts"),
    ),
    commands=commands,
    extensions={
        # Long enough for pgvector's vectorised loops
        "vector": """SELECT array_fill(0.5::real, array[100])::vector
        <=> array_fill(0.25::real, array[100])::vector""",
        "pg_trgm": "SELECT similarity('mug', 'mugs')",
        "unaccent": "SELECT unaccent('café')",
    },
)
