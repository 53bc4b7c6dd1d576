"""Use-cases of items."""

from features.items.handlers.bulk_export import export_items
from features.items.handlers.bulk_import import import_items
from features.items.handlers.crud import (
    create_item,
    delete_all_items,
    delete_item,
    get_item,
    update_item,
)
from features.items.handlers.listing import list_items

__all__ = [
    "create_item",
    "delete_all_items",
    "delete_item",
    "export_items",
    "get_item",
    "import_items",
    "list_items",
    "update_item",
]
