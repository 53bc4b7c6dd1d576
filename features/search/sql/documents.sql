-- The owner's id is a lexeme of every document, so that the GIN index alone narrows a query to one
-- owner. It begins with a space, which no word does, so that no text can claim it.

CREATE FUNCTION search_owner_term(owner_id uuid) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN ' ' || owner_id::text;

CREATE FUNCTION search_text_hash(title text, description text) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
    sha256(convert_to(title || E'\n' || coalesce(description, ''), 'UTF8'));
