from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from features.search import handlers
from features.search.runtime import SearchRuntimeDep
from features.search.schemas import (
    SearchQuery,
    SearchResults,
    SearchStatus,
    SimilarQuery,
    VectorQuery,
)
from shared.auth import Principal, requires
from shared.db import ReadSession
from shared.problems import Unavailable, responses

router = APIRouter(tags=["search"])

Searcher = Annotated[Principal, requires("search:read")]


@router.get("/search", responses=responses(Unavailable))
async def search(
    principal: Searcher,
    query: Annotated[SearchQuery, Query()],
    session: ReadSession,
    runtime: SearchRuntimeDep,
) -> SearchResults:
    """Your items that answer a query best, by their words and by their meaning."""
    return await handlers.search(session, runtime, principal.user_id, query)


@router.post("/search/vector", responses=responses(Unavailable))
async def search_by_vector(
    query: VectorQuery, principal: Searcher, session: ReadSession, runtime: SearchRuntimeDep
) -> SearchResults:
    """Your items that are nearest to an embedding of your own making."""
    return await handlers.search_by_vector(session, runtime, principal.user_id, query)


@router.get("/search/status")
async def status(principal: Searcher, session: ReadSession) -> SearchStatus:
    """How far your items are embedded."""
    return await handlers.index_status(session, principal.user_id)


@router.get("/items/{item_id}/similar", responses=responses(Unavailable))
async def similar(
    item_id: UUID,
    principal: Searcher,
    query: Annotated[SimilarQuery, Query()],
    session: ReadSession,
    runtime: SearchRuntimeDep,
) -> SearchResults:
    """Your items that are nearest in meaning to one of them."""
    return await handlers.similar_items(session, runtime, principal.user_id, item_id, query)
