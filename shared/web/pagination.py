"""Pages of a list, by offset or by keyset, with opaque, signed cursors."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, Any, Generic, TypeVar

import orjson
from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import ColumnElement, Select, String, bindparam, cast, func, tuple_

from shared.crypto import derive
from shared.db import ReadSession, Row
from shared.problems import BadRequest

MAX_LIMIT = 100
MAX_SKIP = 1_000_000
MAX_CURSOR_LENGTH = 4_000
SIGNATURE_BYTES = 16

# A feature's fields and filters cannot have these names: pydantic forbids a leading underscore.
TOTAL, SKIP, ROWS, LAST_VALUE, LAST_ID = "_total", "_skip", "_rows", "_last_value", "_last_id"

Entry = TypeVar("Entry")


class Sort(StrEnum):
    """A column to sort by; `-` for descending. A feature lists its columns in a subclass."""

    @property
    def column(self) -> str:
        return self.value.removeprefix("-")

    @property
    def descending(self) -> bool:
        return self.value.startswith("-")


class PageQuery(BaseModel):
    """A page of a list: by `skip` and `limit`, or by the `cursor` of the previous page.

    A feature adds its filters and its sort columns in a subclass.
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
class CursorPosition:
    """The last row of a page: its value in the sort column and its id, both as text."""

    value: str
    id: str


@dataclass(frozen=True)
class PageRows:
    """The rows of a page; the total number of matching rows, if the query asks for it; and the
    last row, after which the next page begins, or None on the last page."""

    rows: Sequence[Row]
    total: int | None
    last: CursorPosition | None


@dataclass(frozen=True, eq=False)
class ListQuery:
    """The statement behind a list: a SELECT of the visible rows with their id and sort columns,
    and a condition for each filter of the query, by field name.

    Values are bind parameters, so each statement is built once, not in each request.
    """

    rows: Select[Any]
    filters: Mapping[str, ColumnElement[bool]]


@cache
def page_statement(
    listing: ListQuery,
    filters: frozenset[str],
    sort: Sort,
    *,
    after_cursor: bool,
    total: bool = False,
) -> Select[Any]:
    """Builds the SELECT of a page. With `total`, each row has the number of all matching rows."""
    columns, descending = listing.rows.selected_columns, sort.descending
    order = (columns[sort.column], columns.id)
    page = _matching(listing, filters)
    if total:
        page = page.add_columns(count_statement(listing, filters).scalar_subquery().label(TOTAL))
    if after_cursor:
        last = tuple_(*map(_from_text, (LAST_VALUE, LAST_ID), order))
        page = page.where(tuple_(*order) < last if descending else tuple_(*order) > last)
    page = page.order_by(*(column.desc() if descending else column.asc() for column in order))
    return page.offset(bindparam(SKIP)).limit(bindparam(ROWS))


@cache
def count_statement(listing: ListQuery, filters: frozenset[str]) -> Select[Any]:
    matching = _matching(listing, filters)
    return matching.with_only_columns(func.count().label(TOTAL), maintain_column_froms=True)


def _matching(listing: ListQuery, filters: frozenset[str]) -> Select[Any]:
    return listing.rows.where(*(listing.filters[name] for name in sorted(filters)))


def _from_text(name: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Binds a cursor's value as text, which PostgreSQL casts to the type of the column."""
    return cast(bindparam(name, type_=String), column.type)


async def fetch_page(
    session: ReadSession,
    listing: ListQuery,
    query: PageQuery,
    after: CursorPosition | None = None,
    **owner: Any,
) -> PageRows:
    """Returns a page of the matching rows, in the order of the query; ties are broken by id.

    With `after`, the page begins after that row, even if rows were added since. `owner` has the
    values of the parameters in the listing's own SELECT.
    """
    given = {name: getattr(query, name) for name in listing.filters}
    filters = {name: value for name, value in given.items() if value is not None} | owner
    names = frozenset(filters) - frozenset(owner)
    page = page_statement(
        listing, names, query.sort, after_cursor=after is not None, total=query.total
    )
    place: dict[str, Any] = {SKIP: query.skip, ROWS: query.limit + 1}
    if after:
        place |= {LAST_VALUE: after.value, LAST_ID: after.id}
    found = await session.fetch(page, filters | place)
    total: int | None = None
    if query.total:
        counted = found or await session.fetch(count_statement(listing, names), filters)
        total = counted[0][TOTAL]
    rows, more = found[: query.limit], len(found) > query.limit
    return PageRows(rows, total, _keyset(rows[-1], query.sort.column) if more else None)


def _keyset(row: Row, column: str) -> CursorPosition:
    value = row[column]
    return CursorPosition(
        value.isoformat() if isinstance(value, datetime) else str(value), str(row.id)
    )


@dataclass(frozen=True)
class Cursors:
    """Writes and reads cursors.

    A cursor is valid only for the `owner`, the order and the filters of the query that it came
    from, as its signature covers them.
    """

    key: bytes

    def read(self, query: PageQuery, *owner: Any) -> CursorPosition | None:
        """Returns the row after which the page begins, or None if the query has no cursor.

        Raises:
            BadRequest: the cursor is malformed or was changed, or belongs to another query.
        """
        if query.cursor is None:
            return None
        try:
            cursor = urlsafe_b64decode(query.cursor)
        except ValueError:
            raise BadRequest("The cursor is not valid") from None
        signature, last = cursor[:SIGNATURE_BYTES], cursor[SIGNATURE_BYTES:]
        if not compare_digest(signature, self._signature(last, query, owner)):
            raise BadRequest("The cursor is not valid, or not for this order and these filters")
        last_id, _, value = last.decode().partition(" ")
        return CursorPosition(value, last_id)

    def page(self, found: PageRows, query: PageQuery, *owner: Any) -> dict[str, Any]:
        """Returns the fields of the `Page`: its rows, its numbers and the next cursor."""
        return {
            "items": [dict(row) for row in found.rows],
            "total": found.total,
            "page": None if query.cursor is not None else query.skip // query.limit + 1,
            "page_size": query.limit,
            "next_cursor": self._write(found.last, query, owner) if found.last else None,
        }

    def _write(self, keyset: CursorPosition, query: PageQuery, owner: Any) -> str:
        last = f"{keyset.id} {keyset.value}".encode()
        return urlsafe_b64encode(self._signature(last, query, owner) + last).decode()

    def _signature(self, last: bytes, query: PageQuery, owner: Any) -> bytes:
        same = query.model_dump(exclude={"cursor", "skip", "limit", "total"})
        signed = orjson.dumps([owner, same], default=str) + last
        return blake2b(signed, key=self.key, digest_size=SIGNATURE_BYTES).digest()


async def _cursors(request: Request) -> Cursors:
    cursors: Cursors = request.app.state.cursors
    return cursors


def new_cursors(secret: str) -> Cursors:
    return Cursors(derive(secret, "cursor"))


CursorsDep = Annotated[Cursors, Depends(_cursors)]
