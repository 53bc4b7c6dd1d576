-- The nearest items to a vector: an exact scan or the HNSW index, whichever is cheaper.
--
-- An exact scan reads the n embeddings of the owner, or of those that match the filters. The index
-- passes over embeddings of all owners until it has found `wanted` of these, and each costs about 10
-- times as much: 12 µs, not 1.3. The scan is exact for up to 125 * wanted embeddings, which takes
-- about 30 ms. For more, the index may pass over a tenth as many as the owner has, which takes as long
-- as to read those; if it has not found enough by then, because most of what is near belongs to
-- others, the scan is repeated as an exact one. So neither the plan nor the most that a search costs
-- depends on how many embeddings others have.
--
-- The settings of pgvector are set in the body, for the rest of the transaction. In SET clauses, only
-- a superuser could create the function in a session that has not loaded pgvector yet, as a restore.
-- So is that of Citus, which PostgreSQL alone ignores: each query here names the owner, so where the
-- tables are distributed it stays on the worker that the search is on, and may be nested in it.

CREATE FUNCTION search_nearest(
    owner uuid, model integer, query halfvec, wanted integer, required tsquery,
    min_price numeric, max_price numeric, created_after timestamptz, created_before timestamptz
) RETURNS TABLE (item_id uuid, similarity double precision, plan text)
LANGUAGE plpgsql STABLE ROWS 200
SET plan_cache_mode = 'force_custom_plan'
SET enable_sort = off
SET jit = off
AS $$
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
END $$;
