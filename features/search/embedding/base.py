"""The interface of an embedding model, and its errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from shared.problems import Unavailable

PROBE_TEXT = "a plain text, to see that the model answers"

Vector: TypeAlias = NDArray[np.float32]
"""An embedding of unit length, with shape (dimension,)."""


@dataclass(frozen=True)
class EmbeddingModel:
    """Identifies an embedding model. Vectors of different models cannot be compared."""

    provider: str
    name: str
    dimension: int


class EmbeddingUnavailable(Unavailable):
    """The model does not answer at the moment; a retry may succeed."""


class WrongDimension(EmbeddingUnavailable):
    """The model returns vectors of a different dimension than the one in the settings."""


class EmbeddingRefused(Exception):
    """The model answers, but rejects these texts or returns no usable vector for them."""


class Embedder(Protocol):
    """Embeds texts with one model.

    Raises:
        EmbeddingUnavailable: the model does not answer; retry later.
        EmbeddingRefused: the model cannot embed one of the texts.
    """

    model: EmbeddingModel

    async def embed_query(self, text: str) -> Vector: ...

    async def embed_documents(self, texts: Sequence[str]) -> list[Vector]: ...

    async def close(self) -> None: ...


def normalize(values: NDArray[np.floating]) -> Vector:
    """Returns the vector scaled to length 1.

    Raises:
        EmbeddingRefused: the vector is all zeros, or has a value that is not finite.
    """
    largest = np.abs(values).max(initial=0)
    if not np.isfinite(largest) or largest == 0:
        raise EmbeddingRefused("the vector is zero or not finite")
    scaled = values / largest  # squares of very large values overflow, of very small ones become 0
    direction: Vector = (scaled / np.linalg.norm(scaled)).astype(np.float32)
    return direction


def to_pgvector(vector: Vector) -> str:
    """Returns the vector as a pgvector literal, e.g. `[0.1,-0.2]`."""
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY).decode()
