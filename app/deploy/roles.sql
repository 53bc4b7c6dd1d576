-- The roles of the database. `tessera_owner` owns the tables and migrates them. `tessera_service`
-- reads and writes their rows, and can do nothing else. A superuser runs this, before a migration
-- and as often as you like; it takes over tables that a superuser has made.
--
--   OWNER_PASSWORD=… SERVICE_PASSWORD=… psql --file app/deploy/roles.sql postgresql://…/tessera

\set ON_ERROR_STOP on
\getenv owner_password OWNER_PASSWORD
\getenv service_password SERVICE_PASSWORD
SET client_min_messages = warning;
SET log_statement = none;
SET log_min_error_statement = panic;

SELECT 'CREATE ROLE ' || name || ' LOGIN'
FROM unnest(ARRAY['tessera_owner', 'tessera_service']) AS name
WHERE to_regrole(name) IS NULL \gexec
ALTER ROLE tessera_owner PASSWORD :'owner_password';
ALTER ROLE tessera_service PASSWORD :'service_password';

-- An extension that is not trusted is created by a superuser, the others by the migrations.
CREATE EXTENSION IF NOT EXISTS vector;
-- A function with a setting of pgvector's is created by a superuser, or by who may set it: a session
-- that has not loaded pgvector does not know whom it lets. Old revisions and dumps have such a function.
SELECT format('GRANT SET ON PARAMETER %s TO tessera_owner', string_agg(quote_ident(name), ', '))
FROM unnest(ARRAY['hnsw.iterative_scan', 'hnsw.ef_search', 'hnsw.max_scan_tuples',
    'hnsw.scan_mem_multiplier']) AS name
WHERE (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) \gexec
SELECT format('GRANT CREATE ON DATABASE %I TO tessera_owner', current_database()) \gexec
GRANT USAGE, CREATE ON SCHEMA public TO tessera_owner;
GRANT USAGE ON SCHEMA public TO tessera_service;

WITH objects (catalog, id, owner) AS (
    SELECT 'pg_class'::regclass, oid, relowner FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')
    UNION ALL
    SELECT 'pg_proc', oid, proowner FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'pg_type', oid, typowner FROM pg_type
    WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd')
    UNION ALL
    SELECT 'pg_ts_config', oid, cfgowner FROM pg_ts_config
    WHERE cfgnamespace = 'public'::regnamespace
)
SELECT format('ALTER %s %s OWNER TO tessera_owner', type, identity)
FROM objects, pg_identify_object(catalog, id, 0)
WHERE owner <> 'tessera_owner'::regrole AND NOT EXISTS (
    -- what an extension made stays its own, and the sequence of a column goes with its table
    SELECT FROM pg_depend WHERE classid = catalog AND objid = id AND deptype IN ('e', 'a', 'i'))
\gexec

-- PUBLIC creates in a schema that is from before PostgreSQL 15.
REVOKE CREATE ON SCHEMA public FROM tessera_service, PUBLIC;
REVOKE TRUNCATE, REFERENCES, TRIGGER ON ALL TABLES IN SCHEMA public FROM tessera_service, PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO tessera_service;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO tessera_service;
-- Not those of extensions, which withhold some from all but superusers.
SELECT format('GRANT EXECUTE ON FUNCTION %s TO tessera_service', oid::regprocedure) FROM pg_proc
WHERE pronamespace = 'public'::regnamespace AND proowner = 'tessera_owner'::regrole
AND prokind = 'f' \gexec
ALTER DEFAULT PRIVILEGES FOR ROLE tessera_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO tessera_service;
ALTER DEFAULT PRIVILEGES FOR ROLE tessera_owner IN SCHEMA public
    GRANT USAGE ON SEQUENCES TO tessera_service;
ALTER DEFAULT PRIVILEGES FOR ROLE tessera_owner IN SCHEMA public
    GRANT EXECUTE ON FUNCTIONS TO tessera_service;
