"""One item: create, get, update, delete."""

from uuid import UUID

import sqlalchemy
from sqlalchemy import bindparam
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.items.schemas import ItemCreate, ItemPublic, ItemUpdate
from features.items.tables import Item
from shared.errors import NotFound
from shared.preconditions import check_if_match, entity_tag

PUBLIC = sqlalchemy.select(*(getattr(Item, name) for name in ItemPublic.model_fields))
"""The columns that the owner sees."""

OWNED = PUBLIC.where(col(Item.owner_id) == bindparam("owner_id"))
ONE = OWNED.where(col(Item.id) == bindparam("id"))


async def create_item(session: AsyncSession, owner_id: UUID, new: ItemCreate) -> Item:
    """Adds an item. A taken `external_id` violates `uq_items_owner_id_external_id`."""
    item = Item(owner_id=owner_id, **new.model_dump())
    session.add(item)
    await session.flush()
    return item


async def get_item(session: AsyncConnection, owner_id: UUID, item_id: UUID) -> ItemPublic:
    """
    Raises:
        NotFound: there is no such item, or it is somebody else's.
    """
    key = {"id": item_id, "owner_id": owner_id}
    row = (await session.execute(ONE, key)).one_or_none()
    if row is None:
        raise _not_found(item_id)
    return ItemPublic.model_validate(row)


async def update_item(
    session: AsyncSession,
    owner_id: UUID,
    item_id: UUID,
    changes: ItemUpdate,
    if_match: str | None = None,
) -> Item:
    """
    Raises:
        NotFound: there is no such item, or it is somebody else's.
        PreconditionFailed: the item has changed since `if_match` was its tag.
    """
    item = await _lock_item(session, owner_id, item_id, if_match)
    item.sqlmodel_update(changes.model_dump(exclude_unset=True))
    await session.flush()
    return item


async def delete_item(
    session: AsyncSession, owner_id: UUID, item_id: UUID, if_match: str | None = None
) -> None:
    """
    Raises:
        NotFound: there is no such item, or it is somebody else's.
        PreconditionFailed: the item has changed since `if_match` was its tag.
    """
    await session.delete(await _lock_item(session, owner_id, item_id, if_match))


async def _lock_item(
    session: AsyncSession, owner_id: UUID, item_id: UUID, if_match: str | None
) -> Item:
    owned = select(Item).where(col(Item.id) == item_id, col(Item.owner_id) == owner_id)
    item = (await session.exec(owned.with_for_update())).one_or_none()
    if item is None:
        raise _not_found(item_id)
    check_if_match(if_match, entity_tag(item.updated_at))
    return item


def _not_found(item_id: UUID) -> NotFound:
    return NotFound(f"Item {item_id} not found")
