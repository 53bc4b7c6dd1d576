"""What items publish: an item was created, updated or deleted."""

from shared.db.changes import Topic

item_changes = Topic("items")
