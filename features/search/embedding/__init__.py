"""Turns text into vectors, with the local model or a remote one; caches the vectors of queries."""

from features.search.embedding.base import (
    PROBE_TEXT,
    Embedder,
    EmbeddingModel,
    EmbeddingRefused,
    EmbeddingUnavailable,
    Vector,
    WrongDimension,
    normalize,
    to_pgvector,
)
from features.search.embedding.embedders import Embedders

__all__ = [
    "PROBE_TEXT",
    "Embedder",
    "Embedders",
    "EmbeddingModel",
    "EmbeddingRefused",
    "EmbeddingUnavailable",
    "Vector",
    "WrongDimension",
    "normalize",
    "to_pgvector",
]
