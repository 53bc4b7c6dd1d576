-- The words of a text. The configuration `search` has the dictionaries of one language, so that the
-- language can change under a name that stays. Its comment names the language that all documents
-- are indexed in; it is changed for a service that does not own it, as in hnsw_index.sql.
-- PostgreSQL's parser skips anything like an HTML tag, so angle brackets are removed first.

CREATE TEXT SEARCH CONFIGURATION search (COPY = simple);

CREATE FUNCTION search_set_language(language regconfig, complete boolean)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    token record;
BEGIN
    FOR token IN
        SELECT t.alias,
            string_agg(m.mapdict::regdictionary::text, ', ' ORDER BY m.mapseqno) AS dicts
        FROM pg_ts_config_map AS m JOIN ts_token_type('default') AS t ON t.tokid = m.maptokentype
        WHERE m.mapcfg = language GROUP BY t.alias
    LOOP
        EXECUTE format('ALTER TEXT SEARCH CONFIGURATION search ALTER MAPPING FOR %I WITH %s%s',
            token.alias,
            CASE WHEN token.alias IN ('word', 'hword', 'hword_part') THEN 'unaccent, ' ELSE '' END,
            token.dicts);
    END LOOP;
    EXECUTE format('COMMENT ON TEXT SEARCH CONFIGURATION search IS %L',
        CASE WHEN complete THEN language::text END);
END $$;

SELECT search_set_language('english', true);

CREATE FUNCTION search_plain(text text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN translate(left(text, 50000), '<>', '  ');

CREATE FUNCTION search_lexemes(title text, description text) RETURNS tsvector
LANGUAGE sql STABLE PARALLEL SAFE RETURN
    setweight(to_tsvector('search', search_plain(title)), 'A')
    || to_tsvector('search', search_plain(coalesce(description, '')));
