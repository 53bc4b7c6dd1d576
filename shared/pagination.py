"""Pages of a list: by offset, or by keyset, along cursors that are opaque and signed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar

import orjson
from fastapi import Depends, Request
from itsdangerous import BadSignature, URLSafeSerializer
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import ColumnElement, Row, Select, String, Tuple, cast, func, literal, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.errors import BadRequest

MAX_LIMIT = 100
MAX_SKIP = 1_000_000
MAX_CURSOR_LENGTH = 2_000

Entry = TypeVar("Entry")


class Sort(StrEnum):
    """A column to sort by; `-` for descending. A feature lists the columns of its own."""

    @property
    def column(self) -> str:
        return self.value.removeprefix("-")

    @property
    def descending(self) -> bool:
        return self.value.startswith("-")


class PageQuery(BaseModel):
    """A page of a list: by `skip` and `limit`, or by the `cursor` of the page before.

    A feature adds its filters, and what it can be sorted by.
    """

    model_config = ConfigDict(extra="forbid")

    sort: Sort
    skip: Annotated[int, Field(ge=0, le=MAX_SKIP)] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 20
    cursor: Annotated[
        str | None,
        Field(
            max_length=MAX_CURSOR_LENGTH,
            description="`next_cursor` of the page before; sort and filters must be the same",
        ),
    ] = None
    total: Annotated[bool, Field(description="Whether to count all that match")] = True

    @model_validator(mode="after")
    def one_way_to_page(self) -> "PageQuery":
        if self.cursor is not None and self.skip:
            raise ValueError("skip and cursor cannot be combined")
        return self


class Page(BaseModel, Generic[Entry]):
    items: list[Entry]
    total: int | None = Field(description="How many match; null where `total=false`")
    page: int | None = Field(description="From 1; null where a cursor was given")
    page_size: int
    next_cursor: str | None = Field(description="null on the last page")


@dataclass(frozen=True)
class Keyset:
    """The last row of a page: its value in the sort column, and its id, as text."""

    value: str
    id: str


@dataclass(frozen=True)
class Rows:
    """The rows of a page, how many match in all (if that was asked for), and, unless they
    are the last, behind which row the next page begins."""

    rows: Sequence[Row[Any]]
    total: int | None
    last: Keyset | None


async def fetch_page(
    session: AsyncConnection, matching: Select[Any], query: PageQuery, after: Keyset | None = None
) -> Rows:
    """The page of the rows that match, in the order asked for; ties are broken by id.

    `matching` selects the id and the columns that can be sorted by. With `after`, the page
    begins behind that row, wherever rows were added meanwhile.
    """
    columns, descending = matching.selected_columns, query.sort.descending
    order = (columns[query.sort.column], columns.id)
    statement = matching.order_by(*(c.desc() if descending else c.asc() for c in order))
    if after:
        row, last = tuple_(*order), _values(after, order)
        statement = statement.where(row < last if descending else row > last)
    rows = (await session.execute(statement.offset(query.skip).limit(query.limit + 1))).all()
    total: int | None = None
    if query.total:
        count = matching.with_only_columns(func.count(), maintain_column_froms=True)
        total = (await session.execute(count)).scalar_one()
    page, more = rows[: query.limit], len(rows) > query.limit
    return Rows(page, total, _keyset(page[-1], query.sort.column) if more else None)


def _values(keyset: Keyset, order: Sequence[ColumnElement[Any]]) -> Tuple:
    """The keyset as a row of the columns' types: PostgreSQL itself reads the text."""
    texts = (literal(keyset.value, String), literal(keyset.id, String))
    return tuple_(*(cast(text, column.type) for text, column in zip(texts, order, strict=True)))


def _keyset(row: Row[Any], column: str) -> Keyset:
    value = getattr(row, column)
    return Keyset(value.isoformat() if isinstance(value, datetime) else str(value), str(row.id))


@dataclass(frozen=True)
class Cursors:
    """Writes and reads cursors. A cursor is good for one list, that of `owner`, and for the
    order and the filters of the query that it came from."""

    serializer: URLSafeSerializer

    def read(self, query: PageQuery, *owner: Any) -> Keyset | None:
        """Where the page begins, if the query has a cursor.

        Raises:
            BadRequest: the cursor was tampered with, or belongs to another query.
        """
        if query.cursor is None:
            return None
        try:
            digest, value, last_id = self.serializer.loads(query.cursor)
        except BadSignature:
            raise BadRequest("The cursor is not valid") from None
        if digest != _digest(query, owner):
            raise BadRequest("The cursor belongs to a list with another order or other filters")
        return Keyset(value, last_id)

    def page(self, found: Rows, query: PageQuery, *owner: Any) -> dict[str, Any]:
        """The fields of the `Page`: what was found, and where it stands."""
        return {
            "items": found.rows,
            "total": found.total,
            "page": None if query.cursor is not None else query.skip // query.limit + 1,
            "page_size": query.limit,
            "next_cursor": self._write(found.last, query, owner) if found.last else None,
        }

    def _write(self, last: Keyset, query: PageQuery, owner: Any) -> str:
        return str(self.serializer.dumps([_digest(query, owner), last.value, last.id]))


def _digest(query: PageQuery, owner: Any) -> str:
    same = query.model_dump(mode="json", exclude={"cursor", "skip", "limit", "total"})
    return hashlib.sha256(orjson.dumps([owner, same], default=str)).hexdigest()[:16]


def _cursors(request: Request) -> Cursors:
    cursors: Cursors = request.app.state.cursors
    return cursors


def new_cursors(secret: str) -> Cursors:
    return Cursors(URLSafeSerializer(secret, salt="cursor"))


CursorCodec = Annotated[Cursors, Depends(_cursors)]
