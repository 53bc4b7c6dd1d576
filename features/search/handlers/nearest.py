"""Finds the items nearest to a vector, sent by the caller or taken from another item."""

from uuid import UUID

import numpy as np
from sqlalchemy import text

from features.items import ItemPublic
from features.search.embedding import (
    EmbeddingRefused,
    Vector,
    as_text,
    unit,
)
from features.search.engine import Engine
from features.search.indexing.models import KnownModel
from features.search.schemas import (
    Hit,
    Mode,
    SearchResults,
    SimilarQuery,
    VectorQuery,
    filter_values,
)
from features.search.statements import CANDIDATES, ITEM_COLUMNS
from shared.db import ReadSession
from shared.problems import FieldError, NotFound, Unprocessable

NEAREST = text(f"""
WITH nearest AS MATERIALIZED (
    SELECT n.*, row_number() OVER (ORDER BY n.similarity DESC, n.item_id) AS rank,
        count(*) OVER () AS total
    FROM search_nearest(
        :owner, CAST(:model AS integer), CAST(:vector AS halfvec), CAST(:depth AS integer), '',
        CAST(:min_price AS numeric), CAST(:max_price AS numeric),
        CAST(:created_after AS timestamptz), CAST(:created_before AS timestamptz)
    ) AS n
    WHERE n.item_id IS DISTINCT FROM CAST(:but AS uuid)
)
SELECT counted.total, active.id AS active_model, page.*
FROM (SELECT coalesce(max(total), 0) AS total FROM nearest) AS counted
LEFT JOIN search_models AS active ON active.active
LEFT JOIN (
    SELECT {ITEM_COLUMNS}, nearest.similarity, nearest.rank
    FROM (SELECT * FROM nearest ORDER BY rank LIMIT :limit OFFSET :offset) AS nearest
    JOIN items AS i ON i.id = nearest.item_id AND (i.owner_id = :owner) IS TRUE
) AS page ON true
ORDER BY rank
""")  # noqa: S608  # the columns are the fields of ItemPublic

ITEM = text("""
SELECT i.title || E'\\n' || coalesce(i.description, '') AS text,
    m.id AS model_id, CAST(CAST(e.embedding AS vector) AS real[]) AS embedding
FROM items AS i
LEFT JOIN search_models AS m ON m.active
LEFT JOIN search_embeddings AS e ON e.item_id = i.id AND e.model_id = m.id
WHERE i.id = :item AND i.owner_id = :owner
""")


async def search_by_vector(
    session: ReadSession,
    engine: Engine,
    owner_id: UUID,
    query: VectorQuery,
    stale: KnownModel | None = None,
) -> SearchResults:
    """Returns the owner's items that are nearest to a vector. `stale` is a model that an earlier
    attempt found to be no longer active.

    Raises:
        Unprocessable: the vector has another dimension than the model, or is all zeros.
        EmbeddingUnavailable: nothing has been embedded yet.
    """
    known = await engine.active_model(session, stale)
    if len(query.vector) != known.model.dimension:
        if stale is None:  # the cached model may be outdated: read the active one, and retry once
            return await search_by_vector(session, engine, owner_id, query, stale=known)
        expected = f"{known.model.dimension} numbers ({known.model.name})"
        raise _bad_vector(f"The vector has {len(query.vector)} numbers, but needs {expected}")
    try:
        vector = unit(np.array(query.vector, np.float64))
    except EmbeddingRefused:
        raise _bad_vector("The vector is all zeros: it has no direction") from None
    results = await _nearest(session, owner_id, known.id, vector, query)
    return results or await search_by_vector(session, engine, owner_id, query, stale=known)


async def similar_items(
    session: ReadSession,
    engine: Engine,
    owner_id: UUID,
    item_id: UUID,
    query: SimilarQuery,
    stale: KnownModel | None = None,
) -> SearchResults:
    """Returns the owner's items that are nearest to one of them.

    An item that is not embedded yet is embedded within the request. `stale` is a model that an
    earlier attempt found to be no longer active.

    Raises:
        NotFound: the item does not exist, or belongs to another user.
        EmbeddingUnavailable: no model is active yet, or the item is not embedded and the model
            does not answer.
    """
    wanted = {"item": item_id, "owner": owner_id}
    row = await session.fetch_one(ITEM, wanted)
    if row is None:
        raise NotFound(f"Item {item_id} not found")
    known = await engine.active_model(session, stale)
    if row.model_id == known.id and row.embedding is not None:
        vector = unit(np.array(row.embedding))
    else:
        vector = await engine.embedders.embed_query(known.model, row.text)
    results = await _nearest(session, owner_id, known.id, vector, query, but=item_id)
    return results or await similar_items(session, engine, owner_id, item_id, query, stale=known)


async def _nearest(
    session: ReadSession,
    owner_id: UUID,
    model_id: int,
    vector: Vector,
    query: VectorQuery | SimilarQuery,
    but: UUID | None = None,
) -> SearchResults | None:
    """Returns the page of hits, or None if another model has become active meanwhile."""
    parameters = filter_values(query) | {
        "owner": owner_id,
        "model": model_id,
        "vector": as_text(vector),
        "depth": CANDIDATES,
        "limit": query.limit,
        "offset": query.offset,
        "but": but,
    }
    rows = await session.fetch(NEAREST, parameters)
    if rows[0].active_model != model_id:
        return None
    hits = [
        Hit(
            item=ItemPublic.model_validate(dict(row)),
            score=row.similarity,
            lexical_rank=None,
            semantic_rank=row.rank,
            highlights=None,
        )
        for row in rows
        if row.id
    ]
    return SearchResults(hits=hits, total=rows[0].total, mode=Mode.SEMANTIC, degraded=False)


def _bad_vector(detail: str) -> Unprocessable:
    error = FieldError(location="body", pointer="/vector", detail=detail)
    return Unprocessable("1 field is not valid", errors=[error])
