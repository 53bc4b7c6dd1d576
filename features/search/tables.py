"""The tables of the search index.

Triggers on `items` (see migrations/search) and background tasks write them; `statements` reads
them.
"""

from datetime import datetime
from uuid import UUID

from pgvector.sqlalchemy import HALFVEC, SPARSEVEC
from sqlalchemy import (
    ARRAY,
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

    `length` is the number of words, with those of the title counted twice; `average_length` is the
    average of the owner's documents when the weights were computed.
    """

    __tablename__ = "search_documents"
    __table_args__ = (
        Index("ix_search_documents_terms", "terms", postgresql_using="gin"),
        Index("ix_search_documents_owner_id", "owner_id", "average_length"),
    )

    item_id: UUID = Field(primary_key=True)
    owner_id: UUID
    terms: str = Field(sa_type=TSVECTOR)
    length: int
    average_length: float = Field(sa_type=REAL)
    weights: str = Field(sa_column=Column(SPARSEVEC(TERM_DIMENSIONS), nullable=False))
    text_hash: bytes


class SearchEmbedding(SQLModel, table=True):
    """The embedding of an item by one model. Each model has its own partial HNSW index, because
    models differ in dimension."""

    __tablename__ = "search_embeddings"
    __table_args__ = (
        ForeignKeyConstraint(["item_id"], ["search_documents.item_id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["model_id"], ["search_models.id"]),
        Index("ix_search_embeddings_owner_id", "owner_id", "model_id"),
    )

    item_id: UUID = Field(primary_key=True)
    model_id: int = Field(primary_key=True)
    owner_id: UUID
    text_hash: bytes
    embedding: str = Field(sa_column=Column(HALFVEC(), nullable=False))


class SearchQueueEntry(SQLModel, table=True):
    """An item that waits to be embedded by a model, or is parked (a dead letter) after too many
    failures."""

    __tablename__ = "search_queue"
    __table_args__ = (
        Index(
            "ix_search_queue_due",
            "model_id",
            "next_attempt_at",
            postgresql_where=text("NOT parked"),
        ),
        Index("ix_search_queue_owner_id", "owner_id", "model_id"),
    )

    item_id: UUID = Field(primary_key=True)
    model_id: int = Field(primary_key=True)
    owner_id: UUID
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    next_attempt_at: datetime = Field(sa_column_kwargs={"server_default": func.clock_timestamp()})
    parked: bool = Field(default=False, sa_column_kwargs={"server_default": "false"})
    error: str | None = Field(default=None, sa_type=Text)


class SearchChange(SQLModel, table=True):
    """Terms that a write added (`sign` 1) or removed (-1), not yet added to the statistics."""

    __tablename__ = "search_changes"

    id: int | None = Field(
        default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True)
    )
    owner_id: UUID
    item_id: UUID
    sign: int = Field(sa_type=SmallInteger)
    length: int
    lexemes: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))


class SearchOwner(SQLModel, table=True):
    """The number of an owner's documents, and the sum of their lengths."""

    __tablename__ = "search_owners"
    __table_args__ = (Index("ix_search_owners_stale", "owner_id", postgresql_where=text("stale")),)

    owner_id: UUID = Field(primary_key=True)
    documents: int
    length: int = Field(sa_type=BigInteger)
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
    __table_args__ = (
        Index(
            "ix_search_words_word",
            "word",
            postgresql_using="gin",
            postgresql_ops={"word": "gin_trgm_ops"},
        ),
    )

    owner_id: UUID = Field(primary_key=True)
    word: str = Field(sa_column=Column(Text(collation="C"), primary_key=True))
    lexeme: str = Field(sa_column=Column(Text(collation="C"), nullable=False))
