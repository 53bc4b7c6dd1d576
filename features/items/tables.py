from decimal import Decimal
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, Numeric, UniqueConstraint
from sqlmodel import Field

from shared.db.tables import Timestamped, table_of, uuid7


class Item(Timestamped, table=True):
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

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    owner_id: UUID = Field(foreign_key="users.id", ondelete="CASCADE")
    external_id: str | None = None
    title: str
    description: str | None = None
    price: Decimal = Field(sa_type=Numeric(12, 2))


ITEMS = table_of(Item)
