"""Background indexing: embeds queued items, updates the BM25 statistics, rebuilds the index."""

from features.search.indexing.documents import SEARCH_CHANNEL, forget_account, index_change, sweep
from features.search.indexing.embeddings import embed_due
from features.search.indexing.models import active_model
from features.search.indexing.reindexing import count_parked, reindex
from features.search.indexing.statistics import update_statistics

__all__ = [
    "SEARCH_CHANNEL",
    "active_model",
    "count_parked",
    "embed_due",
    "forget_account",
    "index_change",
    "reindex",
    "sweep",
    "update_statistics",
]
