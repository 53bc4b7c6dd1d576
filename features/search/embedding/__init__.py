"""Turns text into vectors, with the local model or a remote one; caches the vectors of queries."""

from features.search.embedding.base import (
    PROBE,
    Embedder,
    EmbeddingRefused,
    EmbeddingUnavailable,
    Model,
    Vector,
    WrongDimension,
    as_text,
    unit,
)
from features.search.embedding.embedders import Embedders

__all__ = [
    "PROBE",
    "Embedder",
    "Embedders",
    "EmbeddingRefused",
    "EmbeddingUnavailable",
    "Model",
    "Vector",
    "WrongDimension",
    "as_text",
    "unit",
]
