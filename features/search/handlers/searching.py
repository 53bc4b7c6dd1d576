from collections.abc import Mapping, Sequence
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
from shared.reading import Reading, Row

FEW = 10
"""Where fewer items than this have all the words, those with some of them follow."""

ENOUGH_ROWS = 20_000
"""Words beyond so many rows of rarer ones add to the score of what was found, and find no more."""

WORDS_SHARE = 0.6
"""How much of a hybrid score is of the words, from 0 to 1; the rest is of the meaning."""


MISSPELT = 0.4
"""A word that no item has is taken for a typo if its trigrams are as similar to those of one that
an item has. With less, words that are merely rare are: "walks" for "wall"."""


async def search(
    session: Reading,
    engine: Engine,
    owner_id: UUID,
    query: SearchQuery,
    stale: KnownModel | None = None,
    respelt: Mapping[str, str] = NOTHING,
) -> SearchResults:
    """The owner's items that answer a query best. `stale` is a model that is searched no more,
    `respelt` has words that no item has, each with the one that is most like it.

    Raises:
        EmbeddingUnavailable: the mode is semantic, and the model does not answer.
    """
    parsed = parse_query(query.q)
    started = perf_counter()
    known, vector = await _embed(session, engine, query.mode, parsed, respelt, stale)
    embedded = perf_counter()
    mode = Mode.LEXICAL if vector is None else query.mode
    rows = await _run(session, owner_id, query, parsed, mode, known, vector)
    if known and rows[0].active_model != known.id:  # the embeddings were switched to another
        return await search(session, engine, owner_id, query, known, respelt)
    if known and rows[0].respelt and not respelt:
        return await search(session, engine, owner_id, query, stale, rows[0].respelt)
    explanation = Explanation(
        plan=rows[0].plan,
        model=known.model.name if known else None,
        respelt=respelt,
        embedding_ms=round((embedded - started) * 1000, 2),
        sql_ms=round((perf_counter() - embedded) * 1000, 2),
    )
    return SearchResults.model_validate(
        {
            "hits": [_hit(row) for row in rows if row.id],
            "total": rows[0].total,
            "mode": query.mode,
            "degraded": mode is not query.mode,
            "explanation": explanation if query.explain else None,
        }
    )


async def _embed(
    session: Reading,
    engine: Engine,
    mode: Mode,
    parsed: ParsedQuery,
    respelt: Mapping[str, str],
    stale: KnownModel | None,
) -> tuple[KnownModel | None, Vector | None]:
    """The active model and the query's vector in it; no vector where hybrid can do without.

    A word may be rare, or mistyped: the vector is between what it says and what it may mean."""
    if mode is Mode.LEXICAL:
        return None, None
    try:
        known = await engine.active_model(session, stale)
        vector = await engine.embedders.embed_query(known.model, parsed.meaning())
        if respelt:
            meant = parsed.meaning(respelt)
            vector = unit(vector + await engine.embedders.embed_query(known.model, meant))
    except EmbeddingUnavailable:
        if mode is Mode.SEMANTIC:
            raise
        return None, None
    return known, vector


async def _run(
    session: Reading,
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
    """The fields of a `Hit`: the score and the ranks are columns."""
    columns, description = dict(row), row.marked_description
    highlights = {
        "title": highlight(row.marked_title),
        "description": None if description is None else highlight(description),
    }
    return {**columns, "item": columns, "highlights": highlights}
