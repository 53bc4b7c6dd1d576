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


@dataclass(frozen=True)
class Pass:
    """One answer to a query. `respelt` has the words that its vector was made with, each with the
    one that it stands for; the times are seconds."""

    rows: Sequence[Row]
    mode: Mode
    known: KnownModel | None
    respelt: Mapping[str, str]
    embedding: float
    sql: float

    @property
    def stale(self) -> KnownModel | None:
        """The model that was searched, if another is the active one."""
        return self.known if self.known and self.rows[0].active_model != self.known.id else None

    @property
    def misspelt(self) -> Mapping[str, str]:
        """Words that no item has, each with the one that is most like it."""
        return self.rows[0].respelt or NOTHING


async def search(
    session: Reading, engine: Engine, owner_id: UUID, query: SearchQuery
) -> SearchResults:
    """The owner's items that answer a query best.

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
    session: Reading,
    engine: Engine,
    owner_id: UUID,
    query: SearchQuery,
    parsed: ParsedQuery,
    *,
    stale: KnownModel | None = None,
    respelt: Mapping[str, str] = NOTHING,
) -> Pass:
    """`stale` is a model that is searched no more."""
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
    session: Reading,
    engine: Engine,
    mode: Mode,
    parsed: ParsedQuery,
    stale: KnownModel | None,
) -> tuple[KnownModel | None, Vector | None]:
    """The active model and the query's vector in it; no vector where hybrid can do without."""
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
    """The vector between what a query says and what it may mean: a word that no item has may be
    mistyped, or merely rare. That of the query alone where the model does not answer."""
    try:
        meant = await engine.embedders.embed_query(known.model, parsed.meaning(respelt))
    except EmbeddingUnavailable:
        return vector, NOTHING
    return unit(vector + meant), respelt


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
