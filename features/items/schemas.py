import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import (
    MISSING,
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from shared.types import JSON_NUMBER, DatabaseText, UtcDatetime
from shared.web.pagination import Page, PageQuery, Sort

MAX_PRICE = Decimal("9999999999.99")
PRICE_STEP = Decimal("1e-10")
UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


_PRICE_JSON_SCHEMA = WithJsonSchema(
    {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": float(MAX_PRICE),
        "description": "At most 2 decimals",
        "examples": [19.99],
    }
)

PriceAsText = Annotated[
    Decimal,
    Field(gt=0, le=MAX_PRICE, decimal_places=2),
    PlainSerializer(float, return_type=float),
    _PRICE_JSON_SCHEMA,
]
"""A price that may be text, as in CSV."""

Price = Annotated[PriceAsText, JSON_NUMBER]
"""Exact in the database, a JSON number on the wire."""

PublicPrice = Annotated[float, _PRICE_JSON_SCHEMA]
"""A price in a response: it comes from the database and is not validated again."""

PriceBound = Annotated[
    Decimal,
    Field(ge=0, le=MAX_PRICE),
    AfterValidator(lambda bound: bound.quantize(PRICE_STEP)),  # PostgreSQL cannot hold 1e-20000
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": float(MAX_PRICE)}),
]

ExternalId = Annotated[DatabaseText, Field(min_length=1, max_length=200)]
Title = Annotated[DatabaseText, Field(min_length=1, max_length=500)]
Description = Annotated[DatabaseText, Field(max_length=10_000)]


class ItemCreate(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"title": "Enamel mug", "price": 12.5}]}
    )

    title: Title
    price: Price
    description: Description | None = None
    external_id: Annotated[
        ExternalId | None, Field(description="Your own key, unique among your items")
    ] = None


class ItemUpdate(BaseModel):
    """A field that is absent stays as it is; `null` clears what may be empty."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"price": 9.99}]})

    title: Title | MISSING = MISSING
    price: Price | MISSING = MISSING
    description: Description | MISSING | None = MISSING
    external_id: ExternalId | MISSING | None = MISSING


class ItemPublic(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    external_id: str | None
    title: str
    description: str | None
    price: PublicPrice
    created_at: datetime
    updated_at: datetime


class ItemSort(Sort):
    """A column to sort by; `-` for descending."""

    CREATED_AT = "created_at"
    CREATED_AT_DESC = "-created_at"
    UPDATED_AT = "updated_at"
    UPDATED_AT_DESC = "-updated_at"
    PRICE = "price"
    PRICE_DESC = "-price"
    TITLE = "title"
    TITLE_DESC = "-title"


class ItemFilters(BaseModel):
    """Filters of items. The bounds of prices are inclusive, those of times exclusive."""

    model_config = ConfigDict(extra="forbid")

    min_price: PriceBound | None = None
    max_price: PriceBound | None = None
    created_after: UtcDatetime | None = None
    created_before: UtcDatetime | None = None


class ItemQuery(PageQuery, ItemFilters):
    """Query of the list: a page by `skip` and `limit`, or by the `cursor` of the page before."""

    q: Annotated[
        DatabaseText | None, Field(min_length=1, max_length=200, description="Part of the title")
    ] = None
    sort: ItemSort = ItemSort.CREATED_AT_DESC


class ItemPage(Page[ItemPublic]):
    """A page of your items."""


def _uuid_or_none(value: object) -> UUID | None:
    return UUID(value) if isinstance(value, str) and UUID_TEXT.fullmatch(value) else None


class ImportRow(ItemCreate):
    """A row of an import: the fields of an item. Unknown fields are ignored.

    An `id` may be that of an item. Where it is not, it stands for the `external_id`, if that field
    is missing.
    """

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    external_id: ExternalId | None = Field(
        default=None, validation_alias=AliasChoices("external_id", "id")
    )
    item_id: Annotated[UUID | None, BeforeValidator(_uuid_or_none)] = Field(
        default=None, validation_alias="id"
    )


class CsvImportRow(ImportRow):
    """A row whose values are all text."""

    price: PriceAsText


class RowError(BaseModel):
    line: int = Field(description="From 1, as an editor counts", examples=[3])
    detail: str = Field(examples=["price: Input should be greater than 0"])


class ImportReport(BaseModel):
    """What an import did, or with `dry_run` would do. Each row is counted once."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: int = 0
    errors: list[RowError] = Field(
        default=[], description="Why rows were rejected: the first 1,000 of them"
    )


class Usage(BaseModel):
    """What an account has, and the most that it may have. A large one is counted once a minute."""

    items: int
    max_items: int
    text_bytes: int = Field(description="Of title, description and external_id, in UTF-8")
    max_text_bytes: int
