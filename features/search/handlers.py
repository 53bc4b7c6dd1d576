"""The use cases of search."""

from functools import partial
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy import text

from features.search.embedding import EmbeddingRefused, normalize
from features.search.indexing.embeddings import MAX_CHARACTERS
from features.search.indexing.models import RegisteredModel
from features.search.query.highlighting import highlight
from features.search.query.nearest import nearest_items
from features.search.query.parsing import parse_query
from features.search.query.search import attempt_search
from features.search.runtime import SearchRuntime
from features.search.schemas import (
    Explanation,
    ParkedItem,
    SearchQuery,
    SearchResults,
    SearchStatus,
    SimilarQuery,
    VectorQuery,
)
from shared.db import ReadSession, Row
from shared.problems import FieldError, NotFound, Unprocessable

SELECT_ITEM_EMBEDDING = text("""
SELECT left(i.title || E'\\n' || coalesce(i.description, ''), :max_characters) AS text,
    m.id AS model_id, CAST(CAST(e.embedding AS vector) AS real[]) AS embedding
FROM items AS i
LEFT JOIN search_models AS m ON m.active
LEFT JOIN search_embeddings AS e
    ON e.owner_id = :owner AND e.item_id = i.id AND e.model_id = m.id
WHERE i.id = :item AND i.owner_id = :owner
""")

SELECT_INDEX_STATUS = text("""
SELECT model.name, model.dimension, counted.*
FROM (SELECT) AS one LEFT JOIN search_models AS model ON model.active
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE embedded) AS indexed,
        count(*) FILTER (WHERE NOT embedded AND NOT parked) AS pending,
        count(*) FILTER (WHERE NOT embedded AND parked) AS parked,
        (array_agg(failure ORDER BY next_attempt_at)
            FILTER (WHERE NOT embedded AND parked))[1 : 10] AS parked_items
    FROM (
        SELECT coalesce(e.text_hash = d.text_hash, false) AS embedded,
            coalesce(q.parked, p.parked, false) AS parked,
            coalesce(q.next_attempt_at, p.next_attempt_at) AS next_attempt_at,
            jsonb_build_object('item_id', d.item_id, 'attempts', coalesce(q.attempts, p.attempts),
                'error', coalesce(q.error, p.error)) AS failure
        FROM search_documents AS d
        LEFT JOIN search_embeddings AS e
            ON e.owner_id = :owner AND e.item_id = d.item_id AND e.model_id = model.id
        LEFT JOIN search_queue AS q
            ON q.owner_id = :owner AND q.item_id = d.item_id AND q.model_id = model.id
        LEFT JOIN search_pending AS p ON p.owner_id = :owner AND p.item_id = d.item_id
        WHERE d.owner_id = :owner
    ) AS documents
) AS counted
""")


async def search(
    session: ReadSession, runtime: SearchRuntime, owner_id: UUID, query: SearchQuery
) -> SearchResults:
    """Returns the owner's items that match a query best.

    If the query was embedded, searches again when it has misspelt words, and whenever another
    model has become active in the meantime.

    Raises:
        EmbeddingUnavailable: the mode is semantic, and the model does not answer.
    """
    attempt = partial(attempt_search, session, runtime, owner_id, query, parse_query(query.q))
    attempts = [await attempt()]
    if attempts[-1].registered and attempts[-1].misspelt:
        attempts.append(await attempt(respelt=attempts[-1].misspelt))
    while stale := attempts[-1].stale:
        attempts.append(await attempt(stale=stale, respelt=attempts[-1].misspelt))
    last = attempts[-1]
    explanation = Explanation(
        plan=last.rows[0].plan,
        model=last.registered.model.name if last.registered else None,
        respelt=last.respelt,
        embedding_ms=round(sum(each.embedding for each in attempts) * 1000, 2),
        sql_ms=round(sum(each.sql for each in attempts) * 1000, 2),
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


async def search_by_vector(
    session: ReadSession,
    runtime: SearchRuntime,
    owner_id: UUID,
    query: VectorQuery,
    stale: RegisteredModel | None = None,
) -> SearchResults:
    """Returns the owner's items that are nearest to a vector. `stale` is a model that an earlier
    attempt found to be no longer active.

    Raises:
        Unprocessable: the vector has another dimension than the model, or is all zeros.
        EmbeddingUnavailable: nothing has been embedded yet.
    """
    registered = await runtime.active_model(session, stale)
    if len(query.vector) != registered.model.dimension:
        if stale is None:  # the cached model may be outdated: read the active one, and retry once
            return await search_by_vector(session, runtime, owner_id, query, stale=registered)
        expected = f"{registered.model.dimension} numbers ({registered.model.name})"
        raise _bad_vector(f"The vector has {len(query.vector)} numbers, but needs {expected}")
    try:
        vector = normalize(np.array(query.vector, np.float64))
    except EmbeddingRefused:
        raise _bad_vector("The vector is all zeros: it has no direction") from None
    results = await nearest_items(session, owner_id, registered.id, vector, query)
    return results or await search_by_vector(session, runtime, owner_id, query, stale=registered)


async def similar_items(
    session: ReadSession,
    runtime: SearchRuntime,
    owner_id: UUID,
    item_id: UUID,
    query: SimilarQuery,
    stale: RegisteredModel | None = None,
) -> SearchResults:
    """Returns the owner's items that are nearest to one of them.

    An item that is not embedded yet is embedded within the request. `stale` is a model that an
    earlier attempt found to be no longer active.

    Raises:
        NotFound: the item does not exist, or belongs to another user.
        EmbeddingUnavailable: no model is active yet, or the item is not embedded and the model
            does not answer.
    """
    of = {"item": item_id, "owner": owner_id, "max_characters": MAX_CHARACTERS}
    row = await session.fetch_one(SELECT_ITEM_EMBEDDING, of)
    if row is None:
        raise NotFound(f"Item {item_id} not found")
    registered = await runtime.active_model(session, stale)
    if row.model_id == registered.id and row.embedding is not None:
        vector = normalize(np.array(row.embedding))
    else:
        vector = await runtime.embedders.embed_query(owner_id, registered.model, row.text)
    results = await nearest_items(session, owner_id, registered.id, vector, query, item_id)
    return results or await similar_items(
        session, runtime, owner_id, item_id, query, stale=registered
    )


async def index_status(session: ReadSession, owner_id: UUID) -> SearchStatus:
    """Counts the owner's items that are embedded, pending, or parked after repeated failures."""
    (row,) = await session.fetch(SELECT_INDEX_STATUS, {"owner": owner_id})
    return SearchStatus(
        indexed=row.indexed,
        pending=row.pending,
        parked=row.parked,
        model=row.name,
        dimension=row.dimension,
        parked_items=[ParkedItem.model_validate(item) for item in row.parked_items or ()],
    )


def _hit(row: Row) -> dict[str, Any]:
    """Returns the fields of a `Hit`; its score and ranks are columns of the row."""
    columns, description = dict(row), row.marked_description
    highlights = {
        "title": highlight(row.marked_title),
        "description": None if description is None else highlight(description),
    }
    return {**columns, "item": columns, "highlights": highlights}


def _bad_vector(detail: str) -> Unprocessable:
    error = FieldError(location="body", pointer="/vector", detail=detail)
    return Unprocessable("1 field is not valid", errors=[error])
