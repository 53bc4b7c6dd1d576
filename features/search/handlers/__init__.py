"""The use cases of search."""

from features.search.handlers.nearest import search_by_vector, similar_items
from features.search.handlers.searching import search
from features.search.handlers.status import index_status

__all__ = ["index_status", "search", "search_by_vector", "similar_items"]
