"""Create, get, update and delete one item."""

from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select, update

from features.items.changes import item_changes
from features.items.schemas import ItemCreate, ItemPublic, ItemUpdate
from features.items.tables import ITEMS
from shared.db import ReadSession, WriteSession
from shared.db.tables import columns, uuid7
from shared.problems import NotFound
from shared.web.conditional import check_if_match

PUBLIC_COLUMNS = columns(ITEMS, ItemPublic)
IS_OWNERS = ITEMS.c.owner_id == bindparam("owner")
IS_THIS_ITEM = (IS_OWNERS, ITEMS.c.id == bindparam("item_id"))
SELECT_ITEMS = select(*PUBLIC_COLUMNS).where(IS_OWNERS)
SELECT_ITEM = select(*PUBLIC_COLUMNS).where(*IS_THIS_ITEM)
LOCK_ITEM = SELECT_ITEM.with_for_update()
INSERT_ITEM = insert(ITEMS).returning(*PUBLIC_COLUMNS)
UPDATE_ITEM = update(ITEMS).where(*IS_THIS_ITEM).returning(*PUBLIC_COLUMNS)
DELETE_ITEM = delete(ITEMS).where(*IS_THIS_ITEM)


async def create_item(session: WriteSession, owner_id: UUID, new: ItemCreate) -> ItemPublic:
    """Adds an item.

    A taken `external_id` violates `uq_items_owner_id_external_id`: 409, as the `Feature` says.
    """
    values = {"id": uuid7(), "owner_id": owner_id, **new.model_dump()}
    [item] = await session.fetch_as(ItemPublic, INSERT_ITEM, values)
    await item_changes.created(session, owner_id, [item.id])
    return item


async def get_item(
    session: ReadSession, owner_id: UUID, item_id: UUID, *, lock: bool = False
) -> ItemPublic:
    """Returns an item; with `lock`, it stays as it is until the end of the transaction.

    Raises:
        NotFound: the item does not exist, or belongs to another account.
    """
    statement = LOCK_ITEM if lock else SELECT_ITEM
    row = await session.fetch_one(statement, {"owner": owner_id, "item_id": item_id})
    if row is None:
        raise NotFound(f"Item {item_id} not found")
    return ItemPublic.model_validate(dict(row))


async def update_item(
    session: WriteSession,
    owner_id: UUID,
    item_id: UUID,
    changes: ItemUpdate,
    if_match: str | None = None,
) -> ItemPublic:
    """Updates the given fields of an item.

    Raises:
        NotFound: the item does not exist, or belongs to another account.
        PreconditionFailed: `if_match` does not match the current entity tag.
    """
    item = await get_item(session, owner_id, item_id, lock=True)
    check_if_match(if_match, item.updated_at)
    if given := changes.model_dump(exclude_unset=True):
        values = {"owner": owner_id, "item_id": item_id, **given}
        [item] = await session.fetch_as(ItemPublic, UPDATE_ITEM, values)
        await item_changes.updated(session, owner_id, [item_id], fields=given)
    return item


async def delete_item(
    session: WriteSession, owner_id: UUID, item_id: UUID, if_match: str | None = None
) -> None:
    """Deletes an item.

    Raises:
        NotFound: the item does not exist, or belongs to another account.
        PreconditionFailed: `if_match` does not match the current entity tag.
    """
    item = await get_item(session, owner_id, item_id, lock=True)
    check_if_match(if_match, item.updated_at)
    await session.execute(DELETE_ITEM, {"owner": owner_id, "item_id": item_id})
    await item_changes.deleted(session, owner_id, [item_id])
