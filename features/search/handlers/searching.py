from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any
from uuid import UUID

from features.search.embedding import EmbeddingUnavailable, Vector, as_text, unit
from features.search.engine import Engine
from features.search.highlighting import BRACKETS, MARKERS, SPECIAL, highlight
from features.search.indexing.models import KnownModel
from features.search.parsing import NOTHING, ParsedQuery, parse_query
from features.search.schemas import (
    Explanation,
    Mode,
    SearchQuery,
    SearchResults,
    filter_values,
)
from features.search.statements import CANDIDATES, search_statement
from shared.db import ReadSession, Row

FEW = 10
"""If fewer items than this match all words, items that match some of the words are added."""

ENOUGH_ROWS = 20_000
"""Words are taken from rare to common. Once the rarer ones occur in this many rows, a more common
word adds to the score of the rows found, but retrieves no further rows."""

WORDS_SHARE = 0.6
"""The weight of the lexical score in a hybrid score, from 0 to 1; the rest is the semantic one."""

MISSPELT = 0.4
"""The minimum trigram similarity at which a word that no item contains counts as a typo of a word
that an item contains. With a lower value, rare words count as typos: "walks" for "wall"."""


@dataclass(frozen=True)
class Pass:
    """The result of one attempt to answer a query.

    `respelt` maps each misspelt word of the query to the word that was also embedded in its
    place. `embedding` and `sql` are seconds.
    """

    rows: Sequence[Row]
    mode: Mode
    known: KnownModel | None
    respelt: Mapping[str, str]
    embedding: float
    sql: float

    @property
    def stale(self) -> KnownModel | None:
        """The model that was searched, if it is no longer the active one; else None."""
        return self.known if self.known and self.rows[0].active_model != self.known.id else None

    @property
    def misspelt(self) -> Mapping[str, str]:
        """Words that no item contains, each mapped to the most similar word that one does."""
        return self.rows[0].respelt or NOTHING


async def search(
    session: ReadSession, engine: Engine, owner_id: UUID, query: SearchQuery
) -> SearchResults:
    """Returns the owner's items that match a query best.

    If the query was embedded, searches again when it has misspelt words, and whenever another
    model has become active in the meantime.

    Raises:
        EmbeddingUnavailable: the mode is semantic, and the model does not answer.
    """
    answer = partial(_answer, session, engine, owner_id, query, parse_query(query.q))
    passes = [await answer()]
    if passes[-1].known and passes[-1].misspelt:
        passes.append(await answer(respelt=passes[-1].misspelt))
    while stale := passes[-1].stale:
        passes.append(await answer(stale=stale, respelt=passes[-1].misspelt))
    last = passes[-1]
    explanation = Explanation(
        plan=last.rows[0].plan,
        model=last.known.model.name if last.known else None,
        respelt=last.respelt,
        embedding_ms=round(sum(each.embedding for each in passes) * 1000, 2),
        sql_ms=round(sum(each.sql for each in passes) * 1000, 2),
    )
    return SearchResults.model_validate(
        {
            "hits": [_hit(row) for row in last.rows if row.id],
            "total": last.rows[0].total,
            "mode": query.mode,
            "degraded": last.mode is not query.mode,
            "explanation": explanation if query.explain else None,
        }
    )


async def _answer(
    session: ReadSession,
    engine: Engine,
    owner_id: UUID,
    query: SearchQuery,
    parsed: ParsedQuery,
    *,
    stale: KnownModel | None = None,
    respelt: Mapping[str, str] = NOTHING,
) -> Pass:
    """Runs one attempt. `stale` is a model that the last attempt found to be no longer active."""
    started = perf_counter()
    known, vector = await _embed(session, engine, query.mode, parsed, stale)
    if known and vector is not None and respelt:
        vector, respelt = await _between(engine, known, vector, parsed, respelt)
    embedded = perf_counter()
    mode = Mode.LEXICAL if vector is None else query.mode
    rows = await _run(session, owner_id, query, parsed, mode, known, vector)
    sql = perf_counter() - embedded
    return Pass(rows, mode, known, respelt if known else NOTHING, embedded - started, sql)


async def _embed(
    session: ReadSession,
    engine: Engine,
    mode: Mode,
    parsed: ParsedQuery,
    stale: KnownModel | None,
) -> tuple[KnownModel | None, Vector | None]:
    """Returns the active model and the query's vector; neither in lexical mode, nor in hybrid mode
    if the model does not answer."""
    if mode is Mode.LEXICAL:
        return None, None
    try:
        known = await engine.active_model(session, stale)
        return known, await engine.embedders.embed_query(known.model, parsed.meaning())
    except EmbeddingUnavailable:
        if mode is Mode.SEMANTIC:
            raise
        return None, None


async def _between(
    engine: Engine,
    known: KnownModel,
    vector: Vector,
    parsed: ParsedQuery,
    respelt: Mapping[str, str],
) -> tuple[Vector, Mapping[str, str]]:
    """Returns the mean direction of the query as typed and the query with corrected words: a word
    that no item contains may be misspelt, or may just be rare. Returns the vector of the query as
    typed, and no corrections, if the model does not answer."""
    try:
        meant = await engine.embedders.embed_query(known.model, parsed.meaning(respelt))
    except EmbeddingUnavailable:
        return vector, NOTHING
    return unit(vector + meant), respelt


async def _run(
    session: ReadSession,
    owner_id: UUID,
    query: SearchQuery,
    parsed: ParsedQuery,
    mode: Mode,
    known: KnownModel | None,
    vector: Vector | None,
) -> Sequence[Row]:
    bounds = filter_values(query)
    parameters = {
        **bounds,
        **parsed.parameters,
        "owner": owner_id,
        "few": FEW,
        "enough": ENOUGH_ROWS,
        "misspelt": MISSPELT,
        "words_share": WORDS_SHARE,
        "depth": query.offset + query.limit if mode is Mode.LEXICAL else CANDIDATES,
        "limit": query.limit,
        "offset": query.offset,
        "special": SPECIAL,
        "brackets": BRACKETS,
        "markers": MARKERS,
        "model": known.id if known else None,
        "vector": None if vector is None else as_text(vector),
    }
    bounded = frozenset(name for name, bound in bounds.items() if bound is not None)
    return await session.fetch(search_statement(mode, bounded), parameters)


def _hit(row: Row) -> dict[str, Any]:
    """Returns the fields of a `Hit`; its score and ranks are columns of the row."""
    columns, description = dict(row), row.marked_description
    highlights = {
        "title": highlight(row.marked_title),
        "description": None if description is None else highlight(description),
    }
    return {**columns, "item": columns, "highlights": highlights}
