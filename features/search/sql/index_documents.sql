-- Writes the index entries of items. Only appends to search_changes and search_queue, so that
-- writers never wait for each other.
--
-- The owner's id is a lexeme of every document, so that the GIN index alone narrows a query to one
-- owner. It begins with a space, which no word does, so that no text can claim it.

CREATE FUNCTION search_owner_term(owner_id uuid) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN ' ' || owner_id::text;

CREATE FUNCTION search_text_hash(title text, description text) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
    sha256(convert_to(title || E'\n' || coalesce(description, ''), 'UTF8'));

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
