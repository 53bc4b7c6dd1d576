"""Create, get, update and delete one item."""

from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select, update

from features.items.schemas import ItemCreate, ItemPublic, ItemUpdate
from features.items.tables import ITEMS
from shared.db import ReadSession, Row, WriteSession
from shared.db.tables import columns, uuid7
from shared.problems import NotFound
from shared.web.conditional import check_if_match

PUBLIC_COLUMNS = columns(ITEMS, ItemPublic)
SELECT_ITEMS = select(*PUBLIC_COLUMNS).where(ITEMS.c.owner_id == bindparam("owner_id"))
SELECT_ITEM = SELECT_ITEMS.where(ITEMS.c.id == bindparam("item_id"))
SELECT_ITEM_FOR_UPDATE = SELECT_ITEM.with_for_update()
INSERT_ITEM = insert(ITEMS).returning(*PUBLIC_COLUMNS)
UPDATE_ITEM = update(ITEMS).where(ITEMS.c.id == bindparam("item_id")).returning(*PUBLIC_COLUMNS)
DELETE_ITEM = delete(ITEMS).where(ITEMS.c.id == bindparam("item_id"))


async def create_item(session: WriteSession, owner_id: UUID, new: ItemCreate) -> ItemPublic:
    """Adds an item.

    A taken `external_id` violates `uq_items_owner_id_external_id`: 409, as the `Feature` says.
    """
    values = {"id": uuid7(), "owner_id": owner_id, **new.model_dump()}
    [row] = await session.fetch(INSERT_ITEM, values)
    return ItemPublic.model_validate(dict(row))


async def get_item(session: ReadSession, owner_id: UUID, item_id: UUID) -> ItemPublic:
    """Returns an item.

    Raises:
        NotFound: the item does not exist, or belongs to another account.
    """
    row = await session.fetch_one(SELECT_ITEM, {"item_id": item_id, "owner_id": owner_id})
    if row is None:
        raise _not_found(item_id)
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
    row = await _lock_item(session, owner_id, item_id, if_match)
    given = changes.model_dump(exclude_unset=True)
    if given:
        [row] = await session.fetch(UPDATE_ITEM, {"item_id": item_id, **given})
    return ItemPublic.model_validate(dict(row))


async def delete_item(
    session: WriteSession, owner_id: UUID, item_id: UUID, if_match: str | None = None
) -> None:
    """Deletes an item.

    Raises:
        NotFound: the item does not exist, or belongs to another account.
        PreconditionFailed: `if_match` does not match the current entity tag.
    """
    await _lock_item(session, owner_id, item_id, if_match)
    await session.execute(DELETE_ITEM, {"item_id": item_id})


async def _lock_item(
    session: WriteSession, owner_id: UUID, item_id: UUID, if_match: str | None
) -> Row:
    row = await session.fetch_one(
        SELECT_ITEM_FOR_UPDATE, {"item_id": item_id, "owner_id": owner_id}
    )
    if row is None:
        raise _not_found(item_id)
    check_if_match(if_match, row.updated_at)
    return row


def _not_found(item_id: UUID) -> NotFound:
    return NotFound(f"Item {item_id} not found")
