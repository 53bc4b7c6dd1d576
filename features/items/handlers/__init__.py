"""Use-cases of items."""

from features.items.handlers.bulk_export import export_items
from features.items.handlers.bulk_import import import_items
from features.items.handlers.crud import (
    create_item,
    delete_item,
    get_item,
    update_item,
)
from features.items.handlers.deleted_accounts import delete_all_items
from features.items.handlers.listing import list_items
from features.items.handlers.merging import merge_rows
from features.items.handlers.staging import delete_abandoned_rows, delete_staged, stage_rows

__all__ = [
    "create_item",
    "delete_abandoned_rows",
    "delete_all_items",
    "delete_item",
    "delete_staged",
    "export_items",
    "get_item",
    "import_items",
    "list_items",
    "merge_rows",
    "stage_rows",
    "update_item",
]
