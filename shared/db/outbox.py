"""The outbox: published changes that wait for subscribers which run after the commit.

A change is one row, however many subscribers wait for it. It is deleted when the last has processed
it (app/outbox.py).
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Identity,
    Index,
    Text,
    Uuid,
    bindparam,
    func,
    insert,
    select,
)
from sqlmodel import Field, SQLModel

from shared.db.changes import Change, Subscriber, Topic
from shared.db.sessions import WriteSession
from shared.db.tables import table_of

OUTBOX_CHANNEL = "outbox"


class OutboxChange(SQLModel, table=True):
    """A published change, and the names of the subscribers that have not processed it yet.

    A transaction that changes a row waits for another that has changed it, so its `id` is the
    greater: in their order, changes of a row are in the order of their commits. So the id is an
    identity, not a UUIDv7: those of two machines are in the order of their clocks. On a cluster
    the coordinator gives it out, so all writers must connect to that.
    """

    __tablename__ = "outbox_changes"
    __table_args__ = (Index("ix_outbox_changes_waiting", "waiting", postgresql_using="gin"),)
    owner_id: UUID = Field(primary_key=True)
    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    topic: str
    kind: str
    ids: list[UUID] = Field(sa_column=Column(ARRAY(Uuid), nullable=False))
    waiting: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    created_at: datetime = Field(sa_column_kwargs={"server_default": func.clock_timestamp()})


class OutboxFailure(SQLModel, table=True):
    """A change that a subscriber has failed to process; parked if it has no next attempt."""

    __tablename__ = "outbox_failures"
    __table_args__ = (
        ForeignKeyConstraint(
            ["owner_id", "change_id"],
            ["outbox_changes.owner_id", "outbox_changes.id"],
            ondelete="CASCADE",
        ),
    )
    owner_id: UUID = Field(primary_key=True)
    change_id: int = Field(sa_type=BigInteger, primary_key=True)
    subscriber: str = Field(primary_key=True)
    attempts: int
    next_attempt_at: datetime | None
    error: str


OUTBOX_CHANGES = table_of(OutboxChange)
INSERT_CHANGE = insert(OUTBOX_CHANGES)
SELECT_WAITING = (
    select(OUTBOX_CHANGES.c.id)
    .where(
        OUTBOX_CHANGES.c.owner_id == bindparam("owner_id"),
        OUTBOX_CHANGES.c.topic == bindparam("topic"),
    )
    .limit(1)
)


async def is_delivered(session: WriteSession, topic: Topic, owner_id: UUID) -> bool:
    """Returns whether no subscriber waits for a change of this owner."""
    values = {"owner_id": owner_id, "topic": topic.name}
    return await session.fetch_value(SELECT_WAITING, values) is None


def outbox_subscriber(names: Sequence[str]) -> Subscriber:
    """Returns the subscriber that writes a change into the outbox, for these names."""

    async def write(session: WriteSession, change: Change) -> None:
        values = {
            "owner_id": change.owner_id,
            "topic": change.topic,
            "kind": str(change.kind),
            "ids": change.ids,
            "waiting": names,
        }
        await session.execute(INSERT_CHANGE, values)
        session.notify(OUTBOX_CHANNEL)

    return write
