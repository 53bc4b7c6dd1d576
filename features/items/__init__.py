"""A private catalogue: items that only their owner can see."""

from features.items.changes import item_changes
from features.items.commands import commands
from features.items.demo import demo
from features.items.handlers import create_item, delete_all_items, update_item
from features.items.router import router
from features.items.schemas import ItemCreate, ItemFilters, ItemPublic, ItemUpdate
from features.items.tables import Item
from features.users import account_changes
from shared.db.changes import Subscription
from shared.feature import Feature
from shared.problems import Conflict, Unauthorized

__all__ = [
    "Item",
    "ItemCreate",
    "ItemFilters",
    "ItemPublic",
    "ItemUpdate",
    "create_item",
    "feature",
    "item_changes",
    "update_item",
]

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
        "fk_items_owner_id": Unauthorized("User not found"),
    },
    subscriptions=(Subscription(account_changes, delete_all_items, outbox="items_accounts"),),
    commands=commands,
    demo=demo,
)
