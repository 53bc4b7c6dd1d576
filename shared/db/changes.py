"""Changes of rows, which a feature publishes in the handler that makes them.

A publisher names no subscriber, and a change without subscribers costs nothing. A subscriber names
the topic, which it imports from the publisher.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID

if TYPE_CHECKING:
    from shared.db.sessions import WriteSession


IDS_PER_CHANGE = 1_000


class ChangeKind(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


@dataclass(frozen=True)
class Change:
    """Rows of one owner that were created, updated or deleted, at most `IDS_PER_CHANGE`.

    `fields` are the only ones that an update may have changed, where the publisher says so. It is
    not kept in the outbox.
    """

    topic: str
    kind: ChangeKind
    owner_id: UUID
    ids: Sequence[UUID]
    fields: Collection[str] | None = None


Subscriber: TypeAlias = "Callable[[WriteSession, Change], Awaitable[int | None]]"
Subscribers: TypeAlias = Mapping[str, Sequence[Subscriber]]
"""By the name of the topic."""


@dataclass(frozen=True)
class Topic:
    """What changes are published under: `await item_changes.created(session, owner_id, [id])`.

    With the name of a table, each transaction of its feature that writes to the table must publish:
    tests fail where one does not.
    """

    name: str

    async def created(self, session: "WriteSession", owner_id: UUID, ids: Sequence[UUID]) -> None:
        """Publishes that rows were inserted, in the transaction that has inserted them."""
        await self._publish(session, ChangeKind.CREATED, owner_id, ids)

    async def updated(
        self,
        session: "WriteSession",
        owner_id: UUID,
        ids: Sequence[UUID],
        fields: Collection[str] | None = None,
    ) -> None:
        """Publishes that rows were changed, in the transaction that has changed them.

        With `fields`, nothing else in them was changed.
        """
        await self._publish(session, ChangeKind.UPDATED, owner_id, ids, fields)

    async def deleted(self, session: "WriteSession", owner_id: UUID, ids: Sequence[UUID]) -> None:
        """Publishes that rows were deleted, in the transaction that has deleted them."""
        await self._publish(session, ChangeKind.DELETED, owner_id, ids)

    async def _publish(
        self,
        session: "WriteSession",
        kind: ChangeKind,
        owner_id: UUID,
        ids: Sequence[UUID],
        fields: Collection[str] | None = None,
    ) -> None:
        subscribers = session.subscribers.get(self.name, ())
        for start in range(0, len(ids) if subscribers else 0, IDS_PER_CHANGE):
            some = ids[start : start + IDS_PER_CHANGE]
            change = Change(self.name, kind, owner_id, some, fields)
            for subscriber in subscribers:
                await subscriber(session, change)


@dataclass(frozen=True)
class Subscription:
    """A function of a feature that runs when rows of a topic have changed.

    `run` has the publisher's transaction: its writes are committed with the change, or nothing is.
    With a name for the `outbox`, it runs after the commit, in a separate transaction, and is tried
    again when it fails (app/outbox.py): its writes there are made once, its other effects at least
    once, and the changes of an owner come in order. If it returns how many rows it did, it is
    called again, in another transaction, until it returns 0. The name stays the same for ever:
    changes wait under it.
    """

    topic: Topic
    run: Subscriber
    outbox: str | None = None
