-- BM25 (Robertson & Zaragoza 2009) with k1 and b of query/ranking.py, the title counted twice.
-- What depends on the document alone is stored as a sparse vector, a dimension for each term; the
-- query's vector holds the inverse document frequencies, and the score is their inner product.

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
);
