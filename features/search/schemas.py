import re
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import AliasChoices, BaseModel, Field, FiniteFloat, field_validator

from features.items import ItemFilters, ItemPublic
from features.search.settings import MAX_DIMENSION
from shared.types import DatabaseText

MAX_QUERY_LENGTH = 1_000
MAX_LIMIT = 100
MAX_OFFSET = 10_000
NOT_BLANK = (
    r"^[^\x00]*"
    r"[^\x00\t-\r\x1C-\x20\x85\xA0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000]"
    r"[^\x00]*$"
)
"""Rejects NUL, and a query that is only white space. White space is listed character by character,
because the meaning of `\\s` differs between regular expression engines."""

Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET)]


class Mode(StrEnum):
    """`lexical` ranks by BM25, `semantic` by the cosine of embeddings, `hybrid` by both."""

    HYBRID = "hybrid"
    LEXICAL = "lexical"
    SEMANTIC = "semantic"


class SearchQuery(ItemFilters):
    """The words to look for, and filters of the items."""

    q: Annotated[
        DatabaseText,
        Field(
            min_length=1,
            max_length=MAX_QUERY_LENGTH,
            description='Words, of which the first 32 count; `"a phrase"` must be there, '
            "`-word` must not, `or` between words",
            examples=["wireless headphones"],
            json_schema_extra={"pattern": NOT_BLANK},
        ),
    ]
    mode: Mode = Mode.HYBRID
    limit: Limit = 10
    offset: Offset = 0
    explain: Annotated[bool, Field(description="Also tell how the answer was found")] = False

    @field_validator("q")
    @classmethod
    def not_blank(cls, q: str) -> str:
        if not re.search(NOT_BLANK, q):
            raise ValueError("must not be blank")
        return q


class SimilarQuery(ItemFilters):
    """A page of the items that are like another."""

    limit: Limit = 10
    offset: Offset = 0


class VectorQuery(ItemFilters):
    """An embedding made by the caller, with the model that `/search/status` names."""

    vector: Annotated[
        list[FiniteFloat],
        Field(
            min_length=1,
            max_length=MAX_DIMENSION,
            validation_alias=AliasChoices("vector", "embedding"),
            description="As many numbers as the model's dimension; of any length but zero",
        ),
    ]
    limit: Limit = 10
    offset: Offset = 0


class Highlights(BaseModel):
    """Escaped HTML with `<mark>` around the words that were found."""

    title: str
    description: str | None = Field(description="The best fragments")


class Hit(BaseModel):
    item: ItemPublic
    score: float = Field(description="Comparable within one answer only; higher is better")
    lexical_rank: int | None = Field(description="Its place by BM25; null if no word was found")
    semantic_rank: int | None = Field(
        description="Its place by meaning; null if not among the nearest"
    )
    highlights: Highlights | None


class Explanation(BaseModel):
    """How an answer was found. Times are milliseconds."""

    plan: str | None = Field(description="`exact` or `index`; null without a vector")
    model: str | None
    respelt: dict[str, str] = Field(
        description="Words that none of your items has, each with the one that is most like it:"
        " the vector is between both meanings"
    )
    embedding_ms: float
    sql_ms: float


class SearchResults(BaseModel):
    hits: list[Hit]
    total: int = Field(description="How many hits there are to page through")
    mode: Mode
    degraded: bool = Field(description="The embedding model did not answer: full text alone")
    explanation: Explanation | None = None


class ParkedItem(BaseModel):
    item_id: UUID
    attempts: int
    error: str


class SearchStatus(BaseModel):
    """How far the caller's items are embedded. All are found by their words at once."""

    indexed: int
    pending: int
    parked: int
    model: str | None
    dimension: int | None
    parked_items: list[ParkedItem] = Field(description="The first ten that could not be embedded")


def filter_values(filters: ItemFilters) -> dict[str, Any]:
    """Returns the filters by name; a filter that is not set is None."""
    return {name: getattr(filters, name) for name in ItemFilters.model_fields}
