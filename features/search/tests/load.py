"""The requests of clients under load: in tests/resilience, which waits for the unfinished ones, and
in the benchmarks."""

PATHS_READ = {"/search?q=kettle+{word}"}
"""With a random word, whose embedding is not cached."""

PATHS_TIMED = {
    "GET /search lexical": "/search?q=enamel+mug&mode=lexical&limit=20",
    "GET /search hybrid": "/search?q=enamel+mug&mode=hybrid&limit=20",
}
"""What the benchmarks time, by the name in their table."""

COUNTS_OF_UNFINISHED = {
    "items that are not indexed": """
        SELECT count(*)
        FROM items AS item JOIN users ON users.id = item.owner_id
        LEFT JOIN search_documents AS document ON document.item_id = item.id
        LEFT JOIN search_embeddings AS embedding
            ON embedding.item_id = item.id AND embedding.text_hash = document.text_hash
        LEFT JOIN search_queue AS queued ON queued.item_id = item.id
        WHERE users.email = $1 AND (embedding.item_id IS NULL OR queued.item_id IS NOT NULL)
    """
}
"""Statements with the address of an account, by what they count."""
