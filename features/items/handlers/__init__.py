"""Use-cases of items."""

from features.items.handlers.exporting import export_items
from features.items.handlers.importing import import_items
from features.items.handlers.listing import list_items
from features.items.handlers.single import create_item, delete_item, get_item, update_item

__all__ = [
    "create_item",
    "delete_item",
    "export_items",
    "get_item",
    "import_items",
    "list_items",
    "update_item",
]
