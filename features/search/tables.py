"""The tables of the search index.

indexing/documents.py writes it when items change; background tasks write the rest.
The owner is first in every key.
"""

from datetime import datetime
from uuid import UUID

from pgvector.sqlalchemy import HALFVEC, SPARSEVEC
from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Identity,
    Index,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import REAL, TSVECTOR
from sqlmodel import Field, SQLModel

TERM_DIMENSIONS = 2**28
"""A lexeme's dimension is 28 bits of its hash; two lexemes that collide share a dimension."""


class SearchModel(SQLModel, table=True):
    """An embedding model whose embeddings are stored; searches use the active one."""

    __tablename__ = "search_models"
    __table_args__ = (
        UniqueConstraint("provider", "name", "dimension"),
        Index("uq_search_models_active", "active", unique=True, postgresql_where=text("active")),
    )

    id: int | None = Field(default=None, sa_column=Column(Identity(always=True), primary_key=True))
    provider: str = Field(sa_type=Text)
    name: str = Field(sa_type=Text)
    dimension: int
    active: bool = Field(default=False, sa_column_kwargs={"server_default": "false"})


class SearchDocument(SQLModel, table=True):
    """The words of an item: searches match `terms`; `weights` is the document's part of BM25.

    `length` is the number of words, with those of the title counted twice. The weights were
    computed with the owner's `average_length`, and BM25's constants of `weights_version`.
    """

    __tablename__ = "search_documents"
    __table_args__ = (
        # Each search reads the pending list of this index, which has terms of all owners
        Index(
            "ix_search_documents_terms",
            "terms",
            postgresql_using="gin",
            postgresql_with={"gin_pending_list_limit": 64},
        ),
        Index(
            "ix_search_documents_weights",
            "owner_id",
            "weights_version",
            "average_length",
        ),
    )

    owner_id: UUID = Field(primary_key=True)
    item_id: UUID = Field(primary_key=True)
    terms: str = Field(sa_type=TSVECTOR)
    length: int
    average_length: float = Field(sa_type=REAL)
    weights_version: int = Field(sa_type=SmallInteger)
    weights: str = Field(sa_column=Column(SPARSEVEC(TERM_DIMENSIONS), nullable=False))
    text_hash: bytes


class SearchEmbedding(SQLModel, table=True):
    """The embedding of an item by one model. Each model has its own partial HNSW index, because
    models differ in dimension."""

    __tablename__ = "search_embeddings"
    __table_args__ = (
        ForeignKeyConstraint(
            ["owner_id", "item_id"],
            ["search_documents.owner_id", "search_documents.item_id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(["model_id"], ["search_models.id"]),
        Index("ix_search_embeddings_owner_id", "owner_id", "model_id"),
    )

    owner_id: UUID = Field(primary_key=True)
    item_id: UUID = Field(primary_key=True)
    model_id: int = Field(primary_key=True)
    text_hash: bytes
    embedding: str = Field(sa_column=Column(HALFVEC(), nullable=False))


class SearchQueueEntry(SQLModel, table=True):
    """An item that waits to be embedded by a model, or is parked (a dead letter) after too many
    failures."""

    __tablename__ = "search_queue"
    __table_args__ = (
        Index(
            "ix_search_queue_due_by_owner",
            "model_id",
            "owner_id",
            "next_attempt_at",
            postgresql_where=text("NOT parked"),
        ),
        Index("ix_search_queue_owner_id", "owner_id", "model_id"),
        Index(
            "ix_search_queue_retries",
            "model_id",
            "owner_id",
            "next_attempt_at",
            postgresql_where=text("attempts > 0 AND NOT parked"),
        ),
    )

    owner_id: UUID = Field(primary_key=True)
    item_id: UUID = Field(primary_key=True)
    model_id: int = Field(primary_key=True)
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    next_attempt_at: datetime = Field(sa_column_kwargs={"server_default": func.clock_timestamp()})
    parked: bool = Field(default=False, sa_column_kwargs={"server_default": "false"})
    error: str | None = Field(default=None, sa_type=Text)


class SearchPendingItem(SQLModel, table=True):
    """An item that has changed since its words were counted, or is parked (a dead letter) after too
    many failures.

    `counted` has the words that the statistics count for it now; NULL if they count none.
    """

    __tablename__ = "search_pending"
    __table_args__ = (
        Index(
            "ix_search_pending_changed",
            "owner_id",
            "next_attempt_at",
            postgresql_where=text("NOT parked"),
        ),
    )

    owner_id: UUID = Field(primary_key=True)
    item_id: UUID = Field(primary_key=True)
    counted: str | None = Field(default=None, sa_type=TSVECTOR)
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    next_attempt_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})
    parked: bool = Field(default=False, sa_column_kwargs={"server_default": "false"})
    error: str | None = Field(default=None, sa_type=Text)


class SearchOwner(SQLModel, table=True):
    """The number of an owner's documents, and the sum of their lengths.

    An owner is stale while some of the weights are to be computed again.
    """

    __tablename__ = "search_owners"
    __table_args__ = (
        Index("ix_search_owners_stale", "owner_id", postgresql_where=text("stale")),
        Index("ix_search_owners_weights_version", "weights_version"),
    )

    owner_id: UUID = Field(primary_key=True)
    documents: int
    length: int = Field(sa_type=BigInteger)
    weights_version: int = Field(sa_type=SmallInteger)
    stale: bool = Field(default=False, sa_column_kwargs={"server_default": "false"})


class SearchTerm(SQLModel, table=True):
    """The number of an owner's documents that contain a lexeme."""

    __tablename__ = "search_terms"

    owner_id: UUID = Field(primary_key=True)
    lexeme: str = Field(sa_column=Column(Text(collation="C"), primary_key=True))
    documents: int


class SearchWord(SQLModel, table=True):
    """A word as it is spelt in an owner's items, to complete unfinished words and correct typos."""

    __tablename__ = "search_words"
    __table_args__ = (Index("ix_search_words_reversed", "owner_id", text("reverse(word)")),)

    owner_id: UUID = Field(primary_key=True)
    word: str = Field(sa_column=Column(Text(collation="C"), primary_key=True))
    lexeme: str = Field(sa_column=Column(Text(collation="C"), nullable=False))
