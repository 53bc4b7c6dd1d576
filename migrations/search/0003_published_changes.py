"""Index entries are written by the service, where items publish their changes; no triggers."""

import runpy
from pathlib import Path

from alembic import op

revision = "search_0003"
down_revision = "search_0002"
branch_labels = None
depends_on = None
ACCEPTED = (  # the service is stopped for it: nothing reads or writes these tables
    "ban-drop-constraint",
    "ban-drop-default",
    "ban-drop-function",
    "ban-drop-table",
    "adding-required-field",
    "constraint-missing-not-valid",
    "adding-foreign-key-constraint",
    "require-concurrent-index-creation",
    "require-concurrent-index-deletion",
    "disallowed-unique-constraint",
    "adding-serial-primary-key-field",
)

OWNER_FIRST = {
    "search_documents": "owner_id, item_id",
    "search_embeddings": "owner_id, item_id, model_id",
    "search_queue": "owner_id, item_id, model_id",
}
OWNER_LAST = {
    "search_documents": "item_id",
    "search_embeddings": "item_id, model_id",
    "search_queue": "item_id, model_id",
}

WEIGHTS = """
CREATE FUNCTION search_weights(
    terms tsvector, length integer, average_length real, k1 float8, b float8
) RETURNS sparsevec LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN (
    SELECT coalesce(search_vector(
        array_agg(search_dimension(lexeme)),
        array_agg(((k1 + 1) * tf / (tf + k1 * (1 - b + b * length / average_length)))::real)
    ), '{}/268435456')
    FROM (
        SELECT lexeme, search_frequency(positions, weights) AS tf
        FROM unnest(terms) WHERE positions IS NOT NULL
    ) AS counted
)
"""
TRIGGERS = ("inserted", "updated", "deleted", "truncated")
FIRST = Path(__file__).with_name("0001_search.py")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for event in TRIGGERS:
        op.execute(f"DROP TRIGGER search_items_{event} ON items")
        op.execute(f"DROP FUNCTION search_items_{event}")
    for function in ("search_forget", "search_index", "search_weights"):
        op.execute(f"DROP FUNCTION {function}")
    op.execute(WEIGHTS)
    _change_keys(OWNER_FIRST, "owner_id, item_id")
    op.execute("""
        CREATE TABLE search_pending (
            owner_id uuid NOT NULL,
            item_id uuid NOT NULL,
            counted tsvector,
            CONSTRAINT pk_search_pending PRIMARY KEY (owner_id, item_id)
        )
    """)
    # What waits to be counted is counted anew: the owner's statistics are those of the changes
    # before it, which are of another form.
    op.execute("DROP TABLE search_changes")
    op.execute("TRUNCATE search_owners, search_terms, search_words")
    op.execute("INSERT INTO search_pending SELECT owner_id, item_id FROM search_documents")
    op.execute("ALTER TABLE search_documents ADD weights_version smallint NOT NULL DEFAULT 1")
    op.execute("ALTER TABLE search_documents ALTER weights_version DROP DEFAULT")
    op.execute("DROP INDEX ix_search_documents_owner_id")
    op.execute("""
        CREATE INDEX ix_search_documents_weights
            ON search_documents (owner_id, weights_version, average_length)
    """)
    op.execute("ALTER TABLE search_owners ADD weights_version smallint NOT NULL")
    op.execute("CREATE INDEX ix_search_owners_weights_version ON search_owners (weights_version)")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    first = runpy.run_path(str(FIRST))
    op.execute("ALTER TABLE search_owners DROP weights_version")
    op.execute("DROP INDEX ix_search_documents_weights")
    op.execute("ALTER TABLE search_documents DROP weights_version")
    op.execute("""
        CREATE INDEX ix_search_documents_owner_id ON search_documents (owner_id, average_length)
    """)
    op.execute("TRUNCATE search_owners, search_terms, search_words")
    # What is marked may have no embedding yet, and nothing else would say so.
    op.execute("""
        INSERT INTO search_queue (owner_id, item_id, model_id)
        SELECT d.owner_id, d.item_id, m.id FROM search_documents AS d CROSS JOIN search_models AS m
        WHERE NOT EXISTS (
            SELECT FROM search_embeddings AS e WHERE e.owner_id = d.owner_id
            AND e.item_id = d.item_id AND e.model_id = m.id AND e.text_hash = d.text_hash)
        ON CONFLICT DO NOTHING
    """)
    op.execute("DROP TABLE search_pending")
    _change_keys(OWNER_LAST, "item_id")
    op.execute("DROP FUNCTION search_weights")
    statements = first["statements"]
    for statement in statements(first["TABLES"]):
        if statement.startswith("CREATE TABLE search_changes"):
            op.execute(statement)
    for statement in statements(first["WEIGHTS"]):
        if statement.startswith("CREATE FUNCTION search_weights"):
            op.execute(statement)
    for statement in statements(first["TRIGGERS"]):
        if "search_owner_term(" not in statement.partition("RETURNS")[0]:
            op.execute(statement)
    op.execute("""
        INSERT INTO search_changes (owner_id, item_id, sign, length, lexemes)
        SELECT owner_id, item_id, 1, length,
            array_remove(tsvector_to_array(terms), search_owner_term(owner_id))
        FROM search_documents
    """)


def _change_keys(keys: dict[str, str], document: str) -> None:
    embeddings = "ALTER TABLE search_embeddings"
    for name in ("item_id", "owner_id_item_id"):
        op.execute(f"{embeddings} DROP CONSTRAINT IF EXISTS fk_search_embeddings_{name}")
    for table, columns in keys.items():
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT pk_{table}")
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT pk_{table} PRIMARY KEY ({columns})")
    name = document.replace(", ", "_")
    op.execute(
        f"{embeddings} ADD CONSTRAINT fk_search_embeddings_{name} FOREIGN KEY ({document}) "
        f"REFERENCES search_documents ({document}) ON DELETE CASCADE"
    )
