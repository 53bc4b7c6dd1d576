"""Keyset cursors: opaque, signed, and good only for the query that they came from."""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Depends, Request
from itsdangerous import BadSignature, URLSafeSerializer

from shared.errors import BadRequest

MAX_LIMIT = 100
MAX_SKIP = 1_000_000
MAX_CURSOR_LENGTH = 2_000


@dataclass(frozen=True)
class Keyset:
    """The last row of a page: its value in the sort column as text, and its id."""

    value: str
    id: str


@dataclass(frozen=True)
class Cursors:
    """Writes and reads cursors. `query` is all that must not change from page to page:
    whose list it is, its order and its filters, as JSON-able values."""

    serializer: URLSafeSerializer

    def write(self, keyset: Keyset, *query: Any) -> str:
        return str(self.serializer.dumps([_digest(query), keyset.value, keyset.id]))

    def read(self, cursor: str, *query: Any) -> Keyset:
        """
        Raises:
            BadRequest: the cursor was tampered with, or belongs to another query.
        """
        try:
            digest, value, last_id = self.serializer.loads(cursor)
        except BadSignature:
            raise BadRequest("The cursor is not valid") from None
        if digest != _digest(query):
            raise BadRequest("The cursor belongs to a list with another order or other filters")
        return Keyset(value, last_id)


def _digest(query: Any) -> str:
    return hashlib.sha256(orjson.dumps(query, default=str)).hexdigest()[:16]


def _cursors(request: Request) -> Cursors:
    cursors: Cursors = request.app.state.cursors
    return cursors


def new_cursors(secret: str) -> Cursors:
    return Cursors(URLSafeSerializer(secret, salt="cursor"))


CursorCodec = Annotated[Cursors, Depends(_cursors)]
