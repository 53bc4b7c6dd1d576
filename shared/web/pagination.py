"""Pages of a list, by offset or by keyset, with opaque, signed cursors."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache, partial
from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, Any, Generic, TypeVar

import orjson
from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import ColumnElement, Select, String, bindparam, cast, func, tuple_

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


@dataclass(frozen=True, eq=False)
class ListQuery:
    """The statement behind a list: a SELECT of the visible rows with their id and sort columns,
    and a condition for each filter of the query, by field name. `name` is signed into the cursors
    of the list: change it, and clients cannot continue.

    Values are bind parameters, so each statement is built once, not in each request.
    """

    name: str
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


@dataclass(frozen=True)
class Paginator:
    """Fetches pages, and signs the cursors that lead from one to the next.

    A cursor is valid only for the list, its parameters (such as the owner), the order and the
    filters of the query that it came from.
    """

    key: bytes

    async def fetch(
        self, session: ReadSession, listed: ListQuery, query: PageQuery, **parameters: Any
    ) -> dict[str, Any]:
        """Returns the fields of the `Page` that a query asks for; ties in its order are broken by
        id. After a cursor, the page begins behind the last row of the page before, even if rows
        were added since. `parameters` has the values of those in the list's own SELECT.

        Raises:
            BadRequest: the cursor is malformed or was changed, or belongs to another query.
        """
        sign = partial(self._sign, listed, query, parameters)
        after = None if query.cursor is None else _read_cursor(query.cursor, sign)
        is_next, total = after is not None, None
        given = {name: getattr(query, name) for name in listed.filters}
        filters = frozenset(name for name, value in given.items() if value is not None)
        values = given | parameters | {SKIP: query.skip, ROWS: query.limit + 1}
        values |= after or {}
        page = page_statement(listed, filters, query.sort, after_cursor=is_next, total=query.total)
        found = await session.fetch(page, values)
        if query.total:  # each row has it; a page without rows is counted again
            counted = found or await session.fetch(count_statement(listed, filters), values)
            total = counted[0][TOTAL]
        rows, more = found[: query.limit], len(found) > query.limit
        return {
            "items": [dict(row) for row in rows],
            "total": total,
            "page": None if is_next else query.skip // query.limit + 1,
            "page_size": query.limit,
            "next_cursor": _write_cursor(rows[-1], query.sort.column, sign) if more else None,
        }

    def _sign(
        self, listed: ListQuery, query: PageQuery, parameters: Mapping[str, Any], last: bytes
    ) -> bytes:
        same = query.model_dump(exclude={"cursor", "skip", "limit", "total"})
        signed = orjson.dumps([listed.name, parameters, same], default=str) + last
        return blake2b(signed, key=self.key, digest_size=SIGNATURE_BYTES).digest()


def _write_cursor(row: Row, column: str, sign: Callable[[bytes], bytes]) -> str:
    value = row[column]
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    last = f"{row.id} {text}".encode()
    return urlsafe_b64encode(sign(last) + last).decode()


def _read_cursor(cursor: str, sign: Callable[[bytes], bytes]) -> dict[str, str]:
    """Returns the sort value and the id of the last row of the page before, as text."""
    try:
        decoded = urlsafe_b64decode(cursor)
    except ValueError:
        raise BadRequest("The cursor is not valid") from None
    signature, last = decoded[:SIGNATURE_BYTES], decoded[SIGNATURE_BYTES:]
    if not compare_digest(signature, sign(last)):
        raise BadRequest("The cursor is not valid, or not for this order and these filters")
    last_id, _, value = last.decode().partition(" ")
    return {LAST_VALUE: value, LAST_ID: last_id}


async def _paginator(request: Request) -> Paginator:
    paginator: Paginator = request.app.state.paginator
    return paginator


Pages = Annotated[Paginator, Depends(_paginator)]
