from uuid import UUID

from sqlalchemy import text

from features.search.schemas import ParkedItem, SearchStatus
from shared.db import ReadSession

STATUS = text("""
SELECT model.name, model.dimension, embeddings.indexed,
    CASE WHEN model.id IS NULL THEN documents.count ELSE queue.pending END AS pending,
    queue.parked, queue.parked_items
FROM (SELECT count(*) FROM search_documents WHERE owner_id = :owner) AS documents
LEFT JOIN search_models AS model ON model.active
LEFT JOIN LATERAL (
    SELECT count(*) AS indexed FROM search_embeddings AS e
    WHERE e.owner_id = :owner AND e.model_id = model.id AND NOT EXISTS (
        SELECT FROM search_queue AS q WHERE q.item_id = e.item_id AND q.model_id = model.id)
) AS embeddings ON true
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE NOT parked) AS pending, count(*) FILTER (WHERE parked) AS parked,
        (array_agg(jsonb_build_object('item_id', item_id, 'attempts', attempts, 'error', error)
            ORDER BY next_attempt_at) FILTER (WHERE parked))[1 : 10] AS parked_items
    FROM search_queue WHERE owner_id = :owner AND model_id = model.id
) AS queue ON true
""")


async def index_status(session: ReadSession, owner_id: UUID) -> SearchStatus:
    """Counts the owner's items that are embedded, pending, or parked after repeated failures."""
    (row,) = await session.fetch(STATUS, {"owner": owner_id})
    return SearchStatus(
        indexed=row.indexed,
        pending=row.pending,
        parked=row.parked,
        model=row.name,
        dimension=row.dimension,
        parked_items=[ParkedItem.model_validate(item) for item in row.parked_items or ()],
    )
