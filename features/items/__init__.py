"""A private catalogue: items that only their owner can see."""

from features.items.commands import commands
from features.items.demo import demo
from features.items.router import router
from features.items.schemas import ItemFilters, ItemPublic
from features.items.tables import Item
from features.items.uploads import lifespan
from shared.feature import Feature
from shared.problems import Conflict, Unauthorized

__all__ = ["Item", "ItemFilters", "ItemPublic", "feature"]

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
    lifespan=lifespan,
    commands=commands,
    demo=demo,
)
