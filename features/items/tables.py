from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, Numeric, UniqueConstraint
from sqlmodel import Field, SQLModel

from shared.db.tables import Timestamped, table_of, uuid7


class ItemFields(SQLModel):
    """The columns that a client fills."""

    external_id: str | None = None
    title: str
    description: str | None = None
    price: Decimal = Field(sa_type=Numeric(12, 2))


class Item(ItemFields, Timestamped, table=True):
    """An item of an account's private catalogue.

    Every index begins with the owner and ends with the id, so that a list reads only its owner's
    rows, and every sort order can be paged by keyset.
    """

    __tablename__ = "items"
    __table_args__ = (
        UniqueConstraint("owner_id", "external_id"),
        CheckConstraint("price > 0", name="price_positive"),
        Index("ix_items_owner_id_created_at", "owner_id", "created_at", "id"),
        Index("ix_items_owner_id_updated_at", "owner_id", "updated_at", "id"),
        Index("ix_items_owner_id_price", "owner_id", "price", "id"),
        Index("ix_items_owner_id_title", "owner_id", "title", "id"),
    )

    owner_id: UUID = Field(primary_key=True)
    id: UUID = Field(default_factory=uuid7, primary_key=True)


class StagedItem(ItemFields, table=True):
    """A row of an import that is under way: it waits here until all rows of the file have come.

    UNLOGGED, as a crash of PostgreSQL ends the import anyway. An import ends with its account, and
    then deletes its rows.
    """

    __tablename__ = "staged_items"
    __table_args__ = ({"prefixes": ["UNLOGGED"]},)

    owner_id: UUID = Field(primary_key=True)
    import_id: UUID = Field(primary_key=True)
    line: int = Field(primary_key=True, sa_type=BigInteger)
    id: UUID
    item_id: UUID | None = None
    """The `id` of the row in the file, which may be that of an item."""


ITEMS = table_of(Item)
STAGED_ITEMS = table_of(StagedItem)
