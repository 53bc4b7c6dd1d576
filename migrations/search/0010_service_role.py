"""The service may have a role that owns nothing: what only an owner may do, functions do."""

from alembic import op

revision = "search_0010"
down_revision = "search_0009"
branch_labels = None
depends_on = None

HNSW_INDEX = """
CREATE FUNCTION search_hnsw_index(model_id integer, dimension integer) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN
    format('ix_search_embeddings_model_%s ON search_embeddings '
        'USING hnsw ((embedding::halfvec(%s)) halfvec_cosine_ops) '
        'WITH (m = 24, ef_construction = 400) WHERE model_id = %s', model_id, dimension, model_id)
"""
CREATE_INDEX = """
CREATE FUNCTION search_create_index(model_id integer, dimension integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    EXECUTE 'CREATE INDEX IF NOT EXISTS ' || search_hnsw_index(model_id, dimension);
END $$
"""
FLUSH_TERMS = """
CREATE FUNCTION search_flush_terms() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$ SELECT gin_clean_pending_list('ix_search_documents_terms') $$
"""
SET_LANGUAGE = "search_set_language(regconfig, boolean)"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for function in (HNSW_INDEX, CREATE_INDEX, FLUSH_TERMS):
        op.execute(function)
    op.execute(
        f"ALTER FUNCTION {SET_LANGUAGE} SECURITY DEFINER"
        " SET search_path = pg_catalog, public, pg_temp"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(f"ALTER FUNCTION {SET_LANGUAGE} SECURITY INVOKER RESET search_path")
    for function in ("search_flush_terms", "search_create_index", "search_hnsw_index"):
        op.execute(f"DROP FUNCTION {function}")
