"""Changes of rows, which a feature publishes in the handler that makes them.

A publisher names no subscriber, and pays for none where there is none. A subscriber names the
topic, which it imports from the publisher, and runs in the publisher's transaction: what it writes
is committed with the change, or not at all.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID

if TYPE_CHECKING:
    from shared.db.sessions import WriteSession


class ChangeKind(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


@dataclass(frozen=True)
class Change:
    """Rows of one owner that were created, updated or deleted; deleted ones no longer exist."""

    topic: str
    kind: ChangeKind
    owner_id: UUID
    ids: Sequence[UUID]


Subscriber: TypeAlias = "Callable[[WriteSession, Change], Awaitable[None]]"
Subscribers: TypeAlias = Mapping[str, Sequence[Subscriber]]
"""By the name of the topic."""


@dataclass(frozen=True)
class Topic:
    """What the changes of a table are published under: `await item_changes.created(session, …)`."""

    name: str

    async def created(self, session: "WriteSession", owner_id: UUID, ids: Sequence[UUID]) -> None:
        """Publishes that rows were inserted, in the transaction that has inserted them."""
        await self._publish(session, ChangeKind.CREATED, owner_id, ids)

    async def updated(self, session: "WriteSession", owner_id: UUID, ids: Sequence[UUID]) -> None:
        """Publishes that rows were changed, in the transaction that has changed them."""
        await self._publish(session, ChangeKind.UPDATED, owner_id, ids)

    async def deleted(self, session: "WriteSession", owner_id: UUID, ids: Sequence[UUID]) -> None:
        """Publishes that rows were deleted, in the transaction that has deleted them."""
        await self._publish(session, ChangeKind.DELETED, owner_id, ids)

    async def _publish(
        self, session: "WriteSession", kind: ChangeKind, owner_id: UUID, ids: Sequence[UUID]
    ) -> None:
        subscribers = session.subscribers.get(self.name, ())
        if ids and subscribers:
            change = Change(self.name, kind, owner_id, ids)
            for subscriber in subscribers:
                await subscriber(session, change)


@dataclass(frozen=True)
class Subscription:
    """What a feature does, in the same transaction, when rows of a topic have changed."""

    topic: Topic
    run: Subscriber


def subscribers_by_topic(subscriptions: Sequence[Subscription]) -> Subscribers:
    found: dict[str, list[Subscriber]] = {}
    for subscription in subscriptions:
        found.setdefault(subscription.topic.name, []).append(subscription.run)
    return found
