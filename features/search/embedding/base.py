"""What search needs of an embedding model, and how it fails."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from shared.errors import Unavailable

PROBE = "a plain text, to see that the model answers"

Vector: TypeAlias = NDArray[np.float32]
"""One embedding: unit length, shape (dimension,)."""


@dataclass(frozen=True)
class Model:
    """A way to turn text into vectors. Vectors of different models cannot be compared."""

    provider: str
    name: str
    dimension: int


class EmbeddingUnavailable(Unavailable):
    """The model cannot answer now."""


class WrongDimension(EmbeddingUnavailable):
    """The model gives vectors of another dimension than the settings say."""


class EmbeddingRefused(Exception):
    """The model answers, but not for these texts."""


class Embedder(Protocol):
    """Embeds texts with one model.

    Raises:
        EmbeddingUnavailable: try again later.
        EmbeddingRefused: one of the texts is at fault.
    """

    model: Model

    async def embed_query(self, text: str) -> Vector: ...

    async def embed_documents(self, texts: Sequence[str]) -> list[Vector]: ...

    async def close(self) -> None: ...


def unit(values: NDArray[np.floating]) -> Vector:
    """The vector of length 1 in the same direction.

    Raises:
        EmbeddingRefused: it has no direction: all zeros, or a value that is not finite.
    """
    largest = np.abs(values).max(initial=0)
    if not np.isfinite(largest) or largest == 0:
        raise EmbeddingRefused("the vector is zero or not finite")
    scaled = values / largest  # the squares of very large or small values would not be finite
    direction: Vector = (scaled / np.linalg.norm(scaled)).astype(np.float32)
    return direction


def as_text(vector: Vector) -> str:
    """As PostgreSQL reads it: `[0.1,-0.2]`."""
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY).decode()
