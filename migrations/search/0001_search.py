"""The search index: kept by the database itself on every write to items."""

import re

from alembic import op

revision = "search_0001"
down_revision = None
branch_labels = ("search",)
depends_on = ("items",)

TABLES = """
CREATE TABLE search_models (
    id integer GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_search_models PRIMARY KEY,
    provider text NOT NULL,
    name text NOT NULL,
    dimension integer NOT NULL,
    active boolean NOT NULL DEFAULT false,
    CONSTRAINT uq_search_models_provider_name_dimension UNIQUE (provider, name, dimension)
);
CREATE UNIQUE INDEX uq_search_models_active ON search_models (active) WHERE active;

CREATE TABLE search_documents (
    item_id uuid CONSTRAINT pk_search_documents PRIMARY KEY,
    owner_id uuid NOT NULL,
    terms tsvector NOT NULL,
    length integer NOT NULL,
    average_length real NOT NULL,
    weights sparsevec(268435456) NOT NULL,
    text_hash bytea NOT NULL
);
CREATE INDEX ix_search_documents_terms ON search_documents USING gin (terms);
CREATE INDEX ix_search_documents_owner_id ON search_documents (owner_id, average_length);

CREATE TABLE search_embeddings (
    item_id uuid NOT NULL,
    model_id integer NOT NULL,
    owner_id uuid NOT NULL,
    text_hash bytea NOT NULL,
    embedding halfvec NOT NULL,
    CONSTRAINT pk_search_embeddings PRIMARY KEY (item_id, model_id),
    CONSTRAINT fk_search_embeddings_item_id FOREIGN KEY (item_id)
        REFERENCES search_documents (item_id) ON DELETE CASCADE,
    CONSTRAINT fk_search_embeddings_model_id FOREIGN KEY (model_id)
        REFERENCES search_models (id)
);
CREATE INDEX ix_search_embeddings_owner_id ON search_embeddings (owner_id, model_id);

CREATE TABLE search_queue (
    item_id uuid NOT NULL,
    model_id integer NOT NULL,
    owner_id uuid NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    parked boolean NOT NULL DEFAULT false,
    error text,
    CONSTRAINT pk_search_queue PRIMARY KEY (item_id, model_id)
);
CREATE INDEX ix_search_queue_due ON search_queue (model_id, next_attempt_at) WHERE NOT parked;
CREATE INDEX ix_search_queue_owner_id ON search_queue (owner_id, model_id);

CREATE TABLE search_changes (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_search_changes PRIMARY KEY,
    owner_id uuid NOT NULL,
    item_id uuid NOT NULL,
    sign smallint NOT NULL,
    length integer NOT NULL,
    lexemes text[] NOT NULL
);

CREATE TABLE search_owners (
    owner_id uuid CONSTRAINT pk_search_owners PRIMARY KEY,
    documents integer NOT NULL,
    length bigint NOT NULL,
    stale boolean NOT NULL DEFAULT false
);
CREATE INDEX ix_search_owners_stale ON search_owners (owner_id) WHERE stale;

CREATE TABLE search_terms (
    owner_id uuid NOT NULL,
    lexeme text COLLATE "C" NOT NULL,
    documents integer NOT NULL,
    CONSTRAINT pk_search_terms PRIMARY KEY (owner_id, lexeme)
) WITH (fillfactor = 70);

CREATE TABLE search_words (
    owner_id uuid NOT NULL,
    word text COLLATE "C" NOT NULL,
    lexeme text COLLATE "C" NOT NULL,
    CONSTRAINT pk_search_words PRIMARY KEY (owner_id, word)
);
CREATE INDEX ix_search_words_word ON search_words USING gin (word gin_trgm_ops);
"""

# A configuration of our own, so that the language can change under a name that stays. Its comment
# names the language that all documents are indexed in.
LANGUAGE = """
CREATE TEXT SEARCH CONFIGURATION search (COPY = simple);

CREATE FUNCTION search_set_language(language regconfig, complete boolean)
RETURNS void LANGUAGE plpgsql AS $$
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
"""

# BM25 (Robertson & Zaragoza 2009), k1 = 1.2, b = 0.75, the title counted twice. What depends
# on the document alone is stored as a sparse vector, a dimension a term; the query's vector
# holds the inverse document frequencies, and the score is their inner product.
#
# The parser would skip what looks like HTML: it sees no angle brackets.
WEIGHTS = """
CREATE FUNCTION search_plain(text text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN translate(left(text, 50000), '<>', '  ');

CREATE FUNCTION search_lexemes(title text, description text) RETURNS tsvector
LANGUAGE sql STABLE PARALLEL SAFE RETURN
    setweight(to_tsvector('search', search_plain(title)), 'A')
    || to_tsvector('search', search_plain(coalesce(description, '')));

CREATE FUNCTION search_owner_term(owner_id uuid) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN ' ' || owner_id::text;

CREATE FUNCTION search_text_hash(title text, description text) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
    sha256(convert_to(title || E'\\n' || coalesce(description, ''), 'UTF8'));

CREATE FUNCTION search_dimension(lexeme text) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN
    ('x' || left(md5(lexeme), 7))::bit(28)::integer + 1;

CREATE FUNCTION search_frequency(positions smallint[], classes text[]) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
    cardinality(positions) + cardinality(array_positions(classes, 'A'));

CREATE FUNCTION search_length(terms tsvector) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN (
    SELECT coalesce(sum(search_frequency(positions, weights)), 0)::integer FROM unnest(terms)
);

CREATE FUNCTION search_vector(dimensions integer[], weights real[]) RETURNS sparsevec
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN (
    SELECT ('{' || coalesce(entries, '') || '}/268435456')::sparsevec
    FROM (
        SELECT string_agg(dimension || ':' || weight, ',') AS entries
        FROM (
            SELECT dimension, sum(weight) AS weight
            FROM unnest(dimensions, weights) AS entry (dimension, weight) GROUP BY dimension
        ) AS summed
    ) AS listed
);

CREATE FUNCTION search_weights(terms tsvector, length integer, average_length real)
RETURNS sparsevec LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN (
    SELECT search_vector(
        array_agg(search_dimension(lexeme)),
        array_agg((2.2 * tf / (tf + 1.2 * (0.25 + 0.75 * length / average_length)))::real)
    )
    FROM (
        SELECT lexeme, search_frequency(positions, weights) AS tf
        FROM unnest(terms) WHERE positions IS NOT NULL
    ) AS counted
);
"""

# The owner's id is a lexeme of every document, so that the GIN index alone narrows a query to
# one owner. It begins with a space, which no word does, so that no text can claim it. Writers only
# append to search_changes and search_queue and never wait for each other.
TRIGGERS = """
CREATE FUNCTION search_index(ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO search_changes (owner_id, item_id, sign, length, lexemes)
    SELECT owner_id, item_id, -1, length,
        array_remove(tsvector_to_array(terms), search_owner_term(owner_id))
    FROM search_documents WHERE item_id = ANY (ids);

    WITH parsed AS MATERIALIZED (
        SELECT id, owner_id, search_lexemes(title, description) AS terms,
            search_text_hash(title, description) AS text_hash
        FROM items WHERE id = ANY (ids)
    ), measured AS MATERIALIZED (
        SELECT *, search_length(terms) AS length FROM parsed
    ), averaged AS (
        SELECT measured.*, greatest(1, coalesce(
            owners.length::real / nullif(owners.documents, 0),
            avg(measured.length) OVER (PARTITION BY measured.owner_id)
        ))::real AS average_length
        FROM measured LEFT JOIN search_owners AS owners USING (owner_id)
    ), logged AS (
        INSERT INTO search_changes (owner_id, item_id, sign, length, lexemes)
        SELECT owner_id, id, 1, length, tsvector_to_array(terms) FROM measured
    )
    INSERT INTO search_documents
        (item_id, owner_id, terms, length, average_length, weights, text_hash)
    SELECT id, owner_id, terms || array_to_tsvector(ARRAY[search_owner_term(owner_id)]), length,
        average_length, coalesce(search_weights(terms, length, average_length), '{}/268435456'),
        text_hash
    FROM averaged
    ON CONFLICT (item_id) DO UPDATE
        SET (owner_id, terms, length, average_length, weights, text_hash)
            = (excluded.owner_id, excluded.terms, excluded.length, excluded.average_length,
               excluded.weights, excluded.text_hash);

    -- a row that is being embedded is locked: it is left alone, its hash will not match
    INSERT INTO search_queue (item_id, model_id, owner_id)
    SELECT documents.item_id, models.id, documents.owner_id
    FROM search_documents AS documents CROSS JOIN search_models AS models
    WHERE documents.item_id = ANY (ids)
    ON CONFLICT (item_id, model_id) DO NOTHING;
    UPDATE search_queue AS q
    SET attempts = 0, parked = false, error = NULL, next_attempt_at = clock_timestamp()
    FROM (
        SELECT item_id, model_id FROM search_queue WHERE item_id = ANY (ids) AND attempts > 0
        FOR UPDATE SKIP LOCKED
    ) AS failed
    WHERE q.item_id = failed.item_id AND q.model_id = failed.model_id;
    NOTIFY search;
END $$;

CREATE FUNCTION search_forget(ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (
        DELETE FROM search_documents WHERE item_id = ANY (ids) RETURNING *
    )
    INSERT INTO search_changes (owner_id, item_id, sign, length, lexemes)
    SELECT owner_id, item_id, -1, length,
        array_remove(tsvector_to_array(terms), search_owner_term(owner_id))
    FROM gone;
    DELETE FROM search_queue WHERE item_id = ANY (ids) AND parked;
    NOTIFY search;
END $$;

CREATE FUNCTION search_items_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM search_index(ARRAY(SELECT id FROM new_rows));
    RETURN NULL;
END $$;

CREATE FUNCTION search_items_updated() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed uuid[] := ARRAY(
        SELECT id FROM (
            SELECT id, owner_id, title, description FROM new_rows
            EXCEPT SELECT id, owner_id, title, description FROM old_rows
        ) AS rows
    );
    gone uuid[] := ARRAY(SELECT id FROM old_rows EXCEPT SELECT id FROM new_rows);
BEGIN
    IF cardinality(gone) > 0 THEN
        PERFORM search_forget(gone);
    END IF;
    IF cardinality(changed) > 0 THEN
        PERFORM search_index(changed);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION search_items_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM search_forget(ARRAY(SELECT id FROM old_rows));
    RETURN NULL;
END $$;

CREATE FUNCTION search_items_truncated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    TRUNCATE search_documents, search_embeddings, search_queue, search_changes,
        search_owners, search_terms, search_words;
    RETURN NULL;
END $$;

CREATE TRIGGER search_items_inserted AFTER INSERT ON items
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION search_items_inserted();
CREATE TRIGGER search_items_updated AFTER UPDATE ON items
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION search_items_updated();
CREATE TRIGGER search_items_deleted AFTER DELETE ON items
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION search_items_deleted();
CREATE TRIGGER search_items_truncated AFTER TRUNCATE ON items
    FOR EACH STATEMENT EXECUTE FUNCTION search_items_truncated();
"""


# With workers, Citus lets only the owner of an extension say IF NOT EXISTS.
CREATE_EXTENSION = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = '{0}') THEN
        CREATE EXTENSION {0};
    END IF;
END $$
"""


def statements(script: str) -> list[str]:
    return re.split(r"\n(?=CREATE |SELECT )", script)[1:]


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for extension in ("vector", "pg_trgm", "unaccent"):
        op.execute(CREATE_EXTENSION.format(extension))
    for script in (TABLES, LANGUAGE, WEIGHTS, TRIGGERS):
        for statement in statements(script):  # one at a time
            op.execute(statement)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for event in ("inserted", "updated", "deleted", "truncated"):
        op.execute(f"DROP TRIGGER search_items_{event} ON items")
        op.execute(f"DROP FUNCTION search_items_{event}")
    for function in (
        "search_forget",
        "search_index",
        "search_weights",
        "search_vector",
        "search_length",
        "search_frequency",
        "search_dimension",
        "search_text_hash",
        "search_owner_term",
        "search_lexemes",
        "search_plain",
        "search_set_language",
    ):
        op.execute(f"DROP FUNCTION {function}")
    op.execute("DROP TEXT SEARCH CONFIGURATION search")
    for table in (
        "words",
        "terms",
        "owners",
        "changes",
        "queue",
        "embeddings",
        "documents",
        "models",
    ):
        op.execute(f"DROP TABLE search_{table}")
