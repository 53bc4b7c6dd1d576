"""A private catalogue: items that only their owner can see."""

from features.items.changes import item_changes
from features.items.handlers import create_item, update_item
from features.items.schemas import ItemCreate, ItemFilters, ItemPublic, ItemUpdate
from features.items.tables import Item

__all__ = [
    "Item",
    "ItemCreate",
    "ItemFilters",
    "ItemPublic",
    "ItemUpdate",
    "create_item",
    "item_changes",
    "update_item",
]
