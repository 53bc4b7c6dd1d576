"""What clients read while tests/resilience breaks something, and what is finished afterwards."""

PATHS_READ = {"/search?q=kettle+{word}"}
"""With a random word, whose embedding is not cached."""

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
