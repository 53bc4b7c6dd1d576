-- Written by `make definitions`: what these migrations make. `doctor` compares it with a database,
-- and psql makes the functions and triggers again, as the owner of the tables.

-- TABLE search_documents: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN item_id ON search_documents: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN owner_id ON search_documents: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN terms ON search_documents: TYPE tsvector, SET NOT NULL, DROP DEFAULT
-- COLUMN length ON search_documents: TYPE integer, SET NOT NULL, DROP DEFAULT
-- COLUMN average_length ON search_documents: TYPE real, SET NOT NULL, DROP DEFAULT
-- COLUMN weights ON search_documents: TYPE sparsevec(268435456), SET NOT NULL, DROP DEFAULT
-- COLUMN text_hash ON search_documents: TYPE bytea, SET NOT NULL, DROP DEFAULT
-- COLUMN weights_version ON search_documents: TYPE smallint, SET NOT NULL, DROP DEFAULT
-- CONSTRAINT pk_search_documents ON search_documents: PRIMARY KEY (owner_id, item_id)
-- INDEX ix_search_documents_terms ON search_documents: CREATE INDEX ix_search_documents_terms ON public.search_documents USING gin (terms) WITH (gin_pending_list_limit='64')
-- INDEX ix_search_documents_weights ON search_documents: CREATE INDEX ix_search_documents_weights ON public.search_documents USING btree (owner_id, weights_version, average_length)
-- TABLE search_embeddings: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN item_id ON search_embeddings: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN model_id ON search_embeddings: TYPE integer, SET NOT NULL, DROP DEFAULT
-- COLUMN owner_id ON search_embeddings: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN text_hash ON search_embeddings: TYPE bytea, SET NOT NULL, DROP DEFAULT
-- COLUMN embedding ON search_embeddings: TYPE halfvec, SET NOT NULL, DROP DEFAULT
-- CONSTRAINT fk_search_embeddings_model_id ON search_embeddings: FOREIGN KEY (model_id) REFERENCES search_models(id)
-- CONSTRAINT fk_search_embeddings_owner_id_item_id ON search_embeddings: FOREIGN KEY (owner_id, item_id) REFERENCES search_documents(owner_id, item_id) ON DELETE CASCADE
-- CONSTRAINT pk_search_embeddings ON search_embeddings: PRIMARY KEY (owner_id, item_id, model_id)
-- INDEX ix_search_embeddings_owner_id ON search_embeddings: CREATE INDEX ix_search_embeddings_owner_id ON public.search_embeddings USING btree (owner_id, model_id)
-- TABLE search_models: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN id ON search_models: TYPE integer, SET NOT NULL, ADD GENERATED ALWAYS AS IDENTITY
-- COLUMN provider ON search_models: TYPE text, SET NOT NULL, DROP DEFAULT
-- COLUMN name ON search_models: TYPE text, SET NOT NULL, DROP DEFAULT
-- COLUMN dimension ON search_models: TYPE integer, SET NOT NULL, DROP DEFAULT
-- COLUMN active ON search_models: TYPE boolean, SET NOT NULL, SET DEFAULT false
-- CONSTRAINT pk_search_models ON search_models: PRIMARY KEY (id)
-- CONSTRAINT uq_search_models_provider_name_dimension ON search_models: UNIQUE (provider, name, dimension)
-- INDEX uq_search_models_active ON search_models: CREATE UNIQUE INDEX uq_search_models_active ON public.search_models USING btree (active) WHERE active
-- TABLE search_owners: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN owner_id ON search_owners: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN documents ON search_owners: TYPE integer, SET NOT NULL, DROP DEFAULT
-- COLUMN length ON search_owners: TYPE bigint, SET NOT NULL, DROP DEFAULT
-- COLUMN stale ON search_owners: TYPE boolean, SET NOT NULL, SET DEFAULT false
-- COLUMN weights_version ON search_owners: TYPE smallint, SET NOT NULL, DROP DEFAULT
-- CONSTRAINT pk_search_owners ON search_owners: PRIMARY KEY (owner_id)
-- INDEX ix_search_owners_stale ON search_owners: CREATE INDEX ix_search_owners_stale ON public.search_owners USING btree (owner_id) WHERE stale
-- INDEX ix_search_owners_weights_version ON search_owners: CREATE INDEX ix_search_owners_weights_version ON public.search_owners USING btree (weights_version)
-- TABLE search_pending: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN owner_id ON search_pending: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN item_id ON search_pending: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN counted ON search_pending: TYPE tsvector, DROP NOT NULL, DROP DEFAULT
-- COLUMN attempts ON search_pending: TYPE integer, SET NOT NULL, SET DEFAULT 0
-- COLUMN next_attempt_at ON search_pending: TYPE timestamp with time zone, SET NOT NULL, SET DEFAULT now()
-- COLUMN parked ON search_pending: TYPE boolean, SET NOT NULL, SET DEFAULT false
-- COLUMN error ON search_pending: TYPE text, DROP NOT NULL, DROP DEFAULT
-- CONSTRAINT pk_search_pending ON search_pending: PRIMARY KEY (owner_id, item_id)
-- INDEX ix_search_pending_changed ON search_pending: CREATE INDEX ix_search_pending_changed ON public.search_pending USING btree (owner_id, next_attempt_at) WHERE (NOT parked)
-- TABLE search_queue: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN item_id ON search_queue: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN model_id ON search_queue: TYPE integer, SET NOT NULL, DROP DEFAULT
-- COLUMN owner_id ON search_queue: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN attempts ON search_queue: TYPE integer, SET NOT NULL, SET DEFAULT 0
-- COLUMN next_attempt_at ON search_queue: TYPE timestamp with time zone, SET NOT NULL, SET DEFAULT clock_timestamp()
-- COLUMN parked ON search_queue: TYPE boolean, SET NOT NULL, SET DEFAULT false
-- COLUMN error ON search_queue: TYPE text, DROP NOT NULL, DROP DEFAULT
-- CONSTRAINT pk_search_queue ON search_queue: PRIMARY KEY (owner_id, item_id, model_id)
-- INDEX ix_search_queue_due_by_owner ON search_queue: CREATE INDEX ix_search_queue_due_by_owner ON public.search_queue USING btree (model_id, owner_id, next_attempt_at) WHERE (NOT parked)
-- INDEX ix_search_queue_owner_id ON search_queue: CREATE INDEX ix_search_queue_owner_id ON public.search_queue USING btree (owner_id, model_id)
-- INDEX ix_search_queue_retries ON search_queue: CREATE INDEX ix_search_queue_retries ON public.search_queue USING btree (model_id, owner_id, next_attempt_at) WHERE ((attempts > 0) AND (NOT parked))
-- TABLE search_terms: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN owner_id ON search_terms: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN lexeme ON search_terms: TYPE text COLLATE "C", SET NOT NULL, DROP DEFAULT
-- COLUMN documents ON search_terms: TYPE integer, SET NOT NULL, DROP DEFAULT
-- CONSTRAINT pk_search_terms ON search_terms: PRIMARY KEY (owner_id, lexeme)
-- TABLE search_words: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN owner_id ON search_words: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN word ON search_words: TYPE text COLLATE "C", SET NOT NULL, DROP DEFAULT
-- COLUMN lexeme ON search_words: TYPE text COLLATE "C", SET NOT NULL, DROP DEFAULT
-- CONSTRAINT pk_search_words ON search_words: PRIMARY KEY (owner_id, word)
-- INDEX ix_search_words_reversed ON search_words: CREATE INDEX ix_search_words_reversed ON public.search_words USING btree (owner_id, reverse(word)) WHERE (length(word) > 2)

-- FUNCTION search_set_language(regconfig,boolean)
CREATE OR REPLACE FUNCTION public.search_set_language(language regconfig, complete boolean)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'public', 'pg_temp'
AS $function$
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
END $function$
;

-- FUNCTION search_plain(text)
CREATE OR REPLACE FUNCTION public.search_plain(text text)
 RETURNS text
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE STRICT
RETURN translate("left"(text, 50000), '<>'::text, '  '::text)
;

-- FUNCTION search_lexemes(text,text)
CREATE OR REPLACE FUNCTION public.search_lexemes(title text, description text)
 RETURNS tsvector
 LANGUAGE sql
 STABLE PARALLEL SAFE
RETURN (setweight(to_tsvector('search'::regconfig, search_plain(title)), 'A'::"char") || to_tsvector('search'::regconfig, search_plain(COALESCE(description, ''::text))))
;

-- FUNCTION search_owner_term(uuid)
CREATE OR REPLACE FUNCTION public.search_owner_term(owner_id uuid)
 RETURNS text
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE STRICT
RETURN (' '::text || (owner_id)::text)
;

-- FUNCTION search_text_hash(text,text)
CREATE OR REPLACE FUNCTION public.search_text_hash(title text, description text)
 RETURNS bytea
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
RETURN sha256(convert_to(((title || '
'::text) || COALESCE(description, ''::text)), 'UTF8'::name))
;

-- FUNCTION search_dimension(text)
CREATE OR REPLACE FUNCTION public.search_dimension(lexeme text)
 RETURNS integer
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE STRICT
RETURN (((('x'::text || "left"(md5(lexeme), 7)))::bit(28))::integer + 1)
;

-- FUNCTION search_frequency(smallint[],text[])
CREATE OR REPLACE FUNCTION public.search_frequency(positions smallint[], classes text[])
 RETURNS integer
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
RETURN (cardinality(positions) + cardinality(array_positions(classes, 'A'::text)))
;

-- FUNCTION search_length(tsvector)
CREATE OR REPLACE FUNCTION public.search_length(terms tsvector)
 RETURNS integer
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE STRICT
RETURN (SELECT (COALESCE(sum(search_frequency(unnest.positions, unnest.weights)), (0)::bigint))::integer AS "coalesce" FROM unnest(search_length.terms) unnest(lexeme, positions, weights))
;

-- FUNCTION search_vector(integer[],real[])
CREATE OR REPLACE FUNCTION public.search_vector(dimensions integer[], weights real[])
 RETURNS sparsevec
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE STRICT
RETURN (SELECT ((('{'::text || COALESCE(listed.entries, ''::text)) || '}/268435456'::text))::sparsevec AS sparsevec FROM (SELECT string_agg(((summed.dimension || ':'::text) || summed.weight), ','::text) AS entries FROM (SELECT entry.dimension, sum(entry.weight) AS weight FROM UNNEST(search_vector.dimensions, search_vector.weights) entry(dimension, weight) GROUP BY entry.dimension) summed) listed)
;

-- FUNCTION search_nearest(uuid,integer,halfvec,integer,tsquery,numeric,numeric,timestamp with time zone,timestamp with time zone)
CREATE OR REPLACE FUNCTION public.search_nearest(owner uuid, model integer, query halfvec, wanted integer, required tsquery, min_price numeric, max_price numeric, created_after timestamp with time zone, created_before timestamp with time zone)
 RETURNS TABLE(item_id uuid, similarity double precision, plan text)
 LANGUAGE plpgsql
 STABLE ROWS 200
 SET plan_cache_mode TO 'force_custom_plan'
 SET enable_sort TO 'off'
 SET jit TO 'off'
AS $function$
DECLARE
    total integer;
    exact_rows integer := 125 * wanted;
    filtered boolean := numnode(required) > 0
        OR num_nonnulls(min_price, max_price, created_after, created_before) > 0;
    among uuid[];
    condition text := 'true';
    nearest text := 'SELECT e.item_id, %s <=> $1 AS distance FROM search_embeddings AS e
        WHERE e.model_id = %s AND e.owner_id = $2 AND %s ORDER BY 2 LIMIT $3';
    found_ids uuid[];
    distances double precision[];
BEGIN
    PERFORM set_config('citus.allow_nested_distributed_execution', 'on', true);
    total := coalesce((SELECT documents FROM search_owners WHERE owner_id = owner), 0);
    IF filtered THEN
        among := ARRAY(
            SELECT i.id FROM items AS i
            WHERE i.owner_id = owner
            AND (min_price IS NULL OR i.price >= min_price)
            AND (max_price IS NULL OR i.price <= max_price)
            AND (created_after IS NULL OR i.created_at > created_after)
            AND (created_before IS NULL OR i.created_at < created_before)
            AND (numnode(required) = 0 OR i.id IN (
                SELECT d.item_id FROM search_documents AS d
                WHERE d.owner_id = owner AND d.terms @@ required))
            LIMIT exact_rows + 1
        );
        condition := CASE WHEN cardinality(among) <= exact_rows THEN 'e.item_id = ANY ($4)' ELSE
            'EXISTS (SELECT FROM items AS i
             JOIN search_documents AS d ON d.owner_id = $2 AND d.item_id = i.id
             WHERE i.owner_id = $2 AND i.id = e.item_id
             AND ($5 IS NULL OR i.price >= $5) AND ($6 IS NULL OR i.price <= $6)
             AND ($7 IS NULL OR i.created_at > $7) AND ($8 IS NULL OR i.created_at < $8)
             AND (numnode($9) = 0 OR d.terms @@ $9))' END;
    END IF;
    plan := CASE WHEN exact_rows < coalesce(cardinality(among), total) THEN 'index' ELSE 'exact' END;
    PERFORM set_config(name, value, true) FROM (VALUES
        ('hnsw.iterative_scan', 'relaxed_order'),
        ('hnsw.ef_search', '1000'),
        ('hnsw.scan_mem_multiplier', '8'),
        ('hnsw.max_scan_tuples', greatest(1, total / 10)::text)
    ) AS settings (name, value);

    FOREACH plan IN ARRAY (CASE plan WHEN 'index' THEN '{index,exact}' ELSE '{exact}' END)::text[]
    LOOP
        EXECUTE format(
            'SELECT array_agg(item_id), array_agg(distance) FROM (' || nearest || ') AS nearest',
            CASE plan WHEN 'index' THEN format('e.embedding::halfvec(%s)', vector_dims(query))
                ELSE 'e.embedding' END,
            model, condition
        )
        INTO found_ids, distances
        USING query, owner, wanted, among, min_price, max_price, created_after, created_before,
            required;
        EXIT WHEN cardinality(found_ids) = wanted;
    END LOOP;
    RETURN QUERY SELECT f.id, 1 - f.distance, plan
        FROM unnest(found_ids, distances) AS f (id, distance) ORDER BY f.distance, f.id;
END $function$
;

-- FUNCTION search_weights(tsvector,integer,real,double precision,double precision)
CREATE OR REPLACE FUNCTION public.search_weights(terms tsvector, length integer, average_length real, k1 double precision, b double precision)
 RETURNS sparsevec
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE STRICT
RETURN (SELECT COALESCE(search_vector(array_agg(search_dimension(counted.lexeme)), array_agg(((((search_weights.k1 + (1)::double precision) * (counted.tf)::double precision) / ((counted.tf)::double precision + (search_weights.k1 * (((1)::double precision - search_weights.b) + ((search_weights.b * (search_weights.length)::double precision) / search_weights.average_length))))))::real)), '{}/268435456'::sparsevec) AS "coalesce" FROM (SELECT unnest.lexeme, search_frequency(unnest.positions, unnest.weights) AS tf FROM unnest(search_weights.terms) unnest(lexeme, positions, weights) WHERE (unnest.positions IS NOT NULL)) counted)
;

-- FUNCTION search_hnsw_index(integer,integer)
CREATE OR REPLACE FUNCTION public.search_hnsw_index(model_id integer, dimension integer)
 RETURNS text
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE STRICT
RETURN format('ix_search_embeddings_model_%s ON search_embeddings USING hnsw ((embedding::halfvec(%s)) halfvec_cosine_ops) WITH (m = 24, ef_construction = 400) WHERE model_id = %s'::text, model_id, dimension, model_id)
;

-- FUNCTION search_create_index(integer,integer)
CREATE OR REPLACE FUNCTION public.search_create_index(model_id integer, dimension integer)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'public', 'pg_temp'
AS $function$
BEGIN
    EXECUTE 'CREATE INDEX IF NOT EXISTS ' || search_hnsw_index(model_id, dimension);
END $function$
;

-- FUNCTION search_flush_terms()
CREATE OR REPLACE FUNCTION public.search_flush_terms()
 RETURNS bigint
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'public', 'pg_temp'
AS $function$ SELECT gin_clean_pending_list('ix_search_documents_terms') $function$
;

-- TEXT SEARCH CONFIGURATION search
-- (made by a migration alone: its dictionaries change with the language)
