"""The search index. Triggers on items keep it (see migrations/search); statements read it."""

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
"""A lexeme's dimension is 28 bits of its hash; two that meet share their weight."""


class SearchModel(SQLModel, table=True):
    """A model that embeddings are kept for; the active one is searched."""

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
    """What an item's words are: `terms` finds it, `weights` is the document's side of BM25.

    `length` is its number of words, the title's counted twice; `average_length` is that of the
    owner's documents when the weights were made.
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
    """What an item means to a model. Each model has an HNSW index of its own, of its dimension."""

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
    """An item that waits to be embedded, or was parked after it failed too often."""

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
    """Terms that a write added (`sign` 1) or took away (-1), still to be added up."""

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
    """How many documents an owner has, and how long they are together."""

    __tablename__ = "search_owners"
    __table_args__ = (Index("ix_search_owners_stale", "owner_id", postgresql_where=text("stale")),)

    owner_id: UUID = Field(primary_key=True)
    documents: int
    length: int = Field(sa_type=BigInteger)
    stale: bool = Field(default=False, sa_column_kwargs={"server_default": "false"})


class SearchTerm(SQLModel, table=True):
    """How many of an owner's documents have a lexeme."""

    __tablename__ = "search_terms"

    owner_id: UUID = Field(primary_key=True)
    lexeme: str = Field(sa_column=Column(Text(collation="C"), primary_key=True))
    documents: int


class SearchWord(SQLModel, table=True):
    """A word as an owner spells it, for words that are unfinished or misspelt."""

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
