"""The declaration of items, for the kernel."""

from features.items.commands import commands
from features.items.demo import demo
from features.items.handlers import delete_all_items
from features.items.quota import lifespan
from features.items.router import router
from features.items.settings import ItemsSettings
from features.items.tasks import delete_abandoned_imports
from features.users import account_changes
from shared.db.changes import Subscription
from shared.feature import Feature
from shared.problems import Conflict

feature = Feature(
    name="items",
    router=router,
    depends_on=("users",),
    scopes={
        "items:read": "Read your items",
        "items:write": "Add, change and delete your items",
    },
    constraints={
        "uq_items_owner_id_external_id": Conflict("You already have an item with this external_id"),
    },
    settings=ItemsSettings,
    lifespan=lifespan,
    periodic_tasks=(delete_abandoned_imports,),
    subscriptions=(Subscription(account_changes, delete_all_items, outbox="items_accounts"),),
    commands=commands,
    demo=demo,
)
