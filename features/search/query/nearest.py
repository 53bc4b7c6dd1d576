"""Selects the items nearest to a vector."""

from uuid import UUID

from sqlalchemy import text

from features.items import ItemPublic
from features.search.embedding import Vector, to_pgvector
from features.search.query.deadline import fetch_in_time
from features.search.query.ranking import CANDIDATES
from features.search.query.statement import ITEM_COLUMNS
from features.search.schemas import (
    Hit,
    Mode,
    SearchResults,
    SimilarQuery,
    VectorQuery,
    filter_values,
)
from shared.db import ReadSession

SELECT_NEAREST = text(f"""
WITH nearest AS MATERIALIZED (
    SELECT n.*, row_number() OVER (ORDER BY n.similarity DESC, n.item_id) AS rank,
        count(*) OVER () AS total
    FROM search_nearest(
        :owner, CAST(:model AS integer), CAST(:vector AS halfvec), CAST(:depth AS integer), '',
        CAST(:min_price AS numeric), CAST(:max_price AS numeric),
        CAST(:created_after AS timestamptz), CAST(:created_before AS timestamptz)
    ) AS n
    WHERE n.item_id IS DISTINCT FROM CAST(:except_id AS uuid)
)
SELECT counted.total, active.id AS active_model, page.*
FROM (SELECT coalesce(max(total), 0) AS total FROM nearest) AS counted
LEFT JOIN search_models AS active ON active.active
LEFT JOIN (
    SELECT {ITEM_COLUMNS}, nearest.similarity, nearest.rank
    FROM (SELECT * FROM nearest ORDER BY rank LIMIT :limit OFFSET :offset) AS nearest
    JOIN items AS i ON i.owner_id = :owner AND i.id = nearest.item_id
) AS page ON true
ORDER BY rank
""")  # noqa: S608  # the columns are the fields of ItemPublic


async def nearest_items(
    session: ReadSession,
    owner_id: UUID,
    model_id: int,
    vector: Vector,
    query: VectorQuery | SimilarQuery,
    except_id: UUID | None = None,
) -> SearchResults | None:
    """Returns the page of hits, or None if another model has become active meanwhile."""
    parameters = filter_values(query) | {
        "owner": owner_id,
        "model": model_id,
        "vector": to_pgvector(vector),
        "depth": CANDIDATES,
        "limit": query.limit,
        "offset": query.offset,
        "except_id": except_id,
    }
    rows = await fetch_in_time(session, SELECT_NEAREST, parameters)
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
