-- Index every write to items, past the service as well.

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
