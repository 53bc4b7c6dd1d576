"""Full-text (BM25) and semantic (vector) search over a user's items."""

from features.search.tables import SearchDocument, SearchEmbedding

__all__ = ["SearchDocument", "SearchEmbedding"]
