-- What only the owner of the index may do, for a service whose role is another. The search path is
-- fixed, so that nothing of the caller's is found in place of ours.
CREATE FUNCTION search_flush_terms() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$ SELECT gin_clean_pending_list('ix_search_documents_terms') $$;
