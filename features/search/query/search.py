"""Runs a search: embeds the query where the mode needs it, and sends the statement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from uuid import UUID

from features.search.embedding import EmbeddingUnavailable, Vector, normalize, to_pgvector
from features.search.indexing.models import RegisteredModel
from features.search.query import ranking
from features.search.query.deadline import fetch_in_time
from features.search.query.highlighting import (
    DESCRIPTION_OPTIONS,
    REPLACED_CHARACTERS,
    REPLACEMENTS,
    TITLE_OPTIONS,
)
from features.search.query.parsing import NO_CORRECTIONS, ParsedQuery
from features.search.query.statement import search_statement
from features.search.runtime import SearchRuntime
from features.search.schemas import Mode, SearchQuery, filter_values
from shared.db import ReadSession, Row


@dataclass(frozen=True)
class SearchAttempt:
    """The result of one attempt to answer a query.

    `respelt` maps each misspelt word of the query to the word that was also embedded in its
    place. `embedding` and `sql` are seconds.
    """

    rows: Sequence[Row]
    mode: Mode
    registered: RegisteredModel | None
    respelt: Mapping[str, str]
    embedding: float
    sql: float

    @property
    def stale(self) -> RegisteredModel | None:
        """The model that was searched, if it is no longer the active one; else None."""
        searched = self.registered
        return searched if searched and self.rows[0].active_model != searched.id else None

    @property
    def misspelt(self) -> Mapping[str, str]:
        """Words that no item contains, each mapped to the most similar word that one does."""
        return self.rows[0].respelt or NO_CORRECTIONS


async def attempt_search(
    session: ReadSession,
    runtime: SearchRuntime,
    owner_id: UUID,
    query: SearchQuery,
    parsed: ParsedQuery,
    *,
    stale: RegisteredModel | None = None,
    respelt: Mapping[str, str] = NO_CORRECTIONS,
) -> SearchAttempt:
    """Runs one attempt. `stale` is a model that the last attempt found to be no longer active.

    Raises:
        EmbeddingUnavailable: the mode is semantic, and the model does not answer.
    """
    started = perf_counter()
    registered, vector = await _embed(session, runtime, owner_id, query.mode, parsed, stale)
    if registered and vector is not None and respelt:
        vector, respelt = await _blend(runtime, owner_id, registered, vector, parsed, respelt)
    embedded = perf_counter()
    mode = Mode.LEXICAL if vector is None else query.mode
    rows = await _fetch(session, owner_id, query, parsed, mode, registered, vector)
    return SearchAttempt(
        rows=rows,
        mode=mode,
        registered=registered,
        respelt=respelt if registered else NO_CORRECTIONS,
        embedding=embedded - started,
        sql=perf_counter() - embedded,
    )


async def _embed(
    session: ReadSession,
    runtime: SearchRuntime,
    owner_id: UUID,
    mode: Mode,
    parsed: ParsedQuery,
    stale: RegisteredModel | None,
) -> tuple[RegisteredModel | None, Vector | None]:
    """Returns the active model and the query's vector; neither in lexical mode, nor in hybrid mode
    if the model does not answer."""
    if mode is Mode.LEXICAL:
        return None, None
    try:
        registered = await runtime.active_model(session, stale)
        text = parsed.text_to_embed()
        return registered, await runtime.embedders.embed_query(owner_id, registered.model, text)
    except EmbeddingUnavailable:
        if mode is Mode.SEMANTIC:
            raise
        return None, None


async def _blend(
    runtime: SearchRuntime,
    owner_id: UUID,
    registered: RegisteredModel,
    vector: Vector,
    parsed: ParsedQuery,
    respelt: Mapping[str, str],
) -> tuple[Vector, Mapping[str, str]]:
    """Returns the mean direction of the query as typed and the query with corrected words: a word
    that no item contains may be misspelt, or may just be rare. Returns the vector of the query as
    typed, and no corrections, if the model does not answer."""
    text = parsed.text_to_embed(respelt)
    try:
        corrected = await runtime.embedders.embed_query(owner_id, registered.model, text)
    except EmbeddingUnavailable:
        return vector, NO_CORRECTIONS
    return normalize(vector + corrected), respelt


async def _fetch(
    session: ReadSession,
    owner_id: UUID,
    query: SearchQuery,
    parsed: ParsedQuery,
    mode: Mode,
    registered: RegisteredModel | None,
    vector: Vector | None,
) -> Sequence[Row]:
    filters = filter_values(query)
    parameters = {
        **filters,
        **parsed.parameters,
        "owner": owner_id,
        "min_full_matches": ranking.MIN_FULL_MATCHES,
        "max_retrieved_rows": ranking.MAX_RETRIEVED_ROWS,
        "typo_similarity": ranking.TYPO_SIMILARITY,
        "lexical_weight": ranking.LEXICAL_WEIGHT,
        "depth": query.offset + query.limit if mode is Mode.LEXICAL else ranking.CANDIDATES,
        "limit": query.limit,
        "offset": query.offset,
        "replaced": REPLACED_CHARACTERS,
        "replacements": REPLACEMENTS,
        "title_options": TITLE_OPTIONS,
        "description_options": DESCRIPTION_OPTIONS,
        "model": registered.id if registered else None,
        "vector": None if vector is None else to_pgvector(vector),
    }
    bounded = frozenset(name for name, bound in filters.items() if bound is not None)
    return await fetch_in_time(session, search_statement(mode, bounded), parameters)
