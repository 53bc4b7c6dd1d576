"""The search as one SQL statement, composed of parts that depend on the mode.

Each word of the query is expanded to a group of lexemes: its own; for the last word, which the user
may still be typing, also those of longer words with this prefix; for a word in none of the owner's
documents, also those of similarly spelt words. These variants have half the weight, and at most
half that of the word itself. Documents with the words as typed rank before those with variants.
The longer words are those that the owner's items have: a prefix in the query (`:*`) would first
collect the rows of all owners that match it.

The GIN index on `terms` finds the rows, because the owner's id is one of the terms. Every relation
is bound to the owner with `=` too, so that a search reads one shard of distributed tables.
"""

from functools import cache

from sqlalchemy import TextClause, text

from features.items import ItemPublic
from features.search.query.ranking import MAX_TERM_WEIGHT
from features.search.schemas import Mode

EXPAND_WORDS = """
WITH owner AS MATERIALIZED (
    SELECT coalesce(max(documents), 0) AS documents FROM search_owners WHERE owner_id = :owner
), alternatives AS MATERIALIZED (
    SELECT alternative, words, phrases, excluded
    FROM ROWS FROM (jsonb_to_recordset(CAST(:alternatives AS jsonb))
        AS (words text[], phrases text[], excluded text[]))
        WITH ORDINALITY AS given (words, phrases, excluded, alternative)
), demands AS MATERIALIZED (
    SELECT alternative,
        '(' || string_agg('(' || CAST(demand AS text) || ')', '&') || ')' AS demanded
    FROM (
        SELECT alternative, phraseto_tsquery('search', unnest(phrases)) AS demand
        FROM alternatives
        UNION ALL SELECT alternative, !! phraseto_tsquery('search', unnest(excluded))
        FROM alternatives
    ) AS demands
    WHERE numnode(demand) > 0 GROUP BY alternative
), words AS MATERIALIZED (
    SELECT word, lexemes, word = :unfinished AS unfinished, EXISTS (
        SELECT FROM search_terms AS t WHERE t.owner_id = :owner AND t.lexeme = ANY (lexemes)
    ) AS known
    FROM (
        SELECT word, tsvector_to_array(to_tsvector('search', word)) AS lexemes
        FROM (SELECT DISTINCT unnest(words) AS word FROM alternatives) AS given
    ) AS given
    WHERE cardinality(lexemes) > 0
), newest AS MATERIALIZED (
    SELECT unnest(tsvector_to_array(d.terms)) AS lexeme
    FROM (
        SELECT item_id FROM search_pending WHERE owner_id = :owner ORDER BY item_id DESC LIMIT 20
    ) AS p
    JOIN search_documents AS d ON d.owner_id = :owner AND d.item_id = p.item_id
), longer AS MATERIALIZED (
    SELECT words.word, more.lexeme
    FROM words CROSS JOIN LATERAL (
        (SELECT s.lexeme FROM search_words AS s
        WHERE s.owner_id = :owner AND s.word > words.word AND s.word < words.word || chr(1114111)
        LIMIT 100)
        UNION
        (SELECT t.lexeme FROM unnest(words.lexemes) AS own (lexeme) JOIN search_terms AS t
        ON t.owner_id = :owner AND t.lexeme > own.lexeme AND t.lexeme < own.lexeme || chr(1114111)
        LIMIT 100)
        UNION
        (SELECT n.lexeme FROM unnest(words.lexemes) AS own (lexeme) JOIN newest AS n
        ON n.lexeme > own.lexeme COLLATE "C" AND n.lexeme < own.lexeme || chr(1114111) COLLATE "C"
        LIMIT 100)
    ) AS more
    WHERE words.unfinished AND length(words.word) > 1 AND more.lexeme <> ALL (words.lexemes)
), alike AS MATERIALIZED (
    SELECT words.word, more.*
    FROM words CROSS JOIN LATERAL (
        SELECT s.lexeme, s.word AS spelt,
            row_number() OVER (ORDER BY similarity(s.word, words.word) DESC, s.word) AS place
        FROM (
            SELECT s.lexeme, s.word FROM search_words AS s
            WHERE s.owner_id = :owner AND s.word >= left(words.word, 1)
            AND s.word < left(words.word, 1) || chr(1114111) AND s.word % words.word
            UNION
            SELECT s.lexeme, s.word FROM search_words AS s
            WHERE s.owner_id = :owner AND reverse(s.word) >= left(reverse(words.word), 2)
            AND reverse(s.word) < left(reverse(words.word), 2) || chr(1114111)
            AND length(s.word) > 2 AND s.word % words.word
        ) AS s
        ORDER BY place LIMIT 3
    ) AS more
    WHERE NOT words.known AND length(words.word) > 3
    AND words.word NOT IN (SELECT word FROM longer)
), members AS MATERIALIZED (
    SELECT word, lexeme, own, counted.documents,
        ln(1 + greatest(0, owner.documents - counted.documents + 0.5)
            / (counted.documents + 0.5)) AS idf
    FROM (
        SELECT word, unnest(lexemes) AS lexeme, true AS own FROM words
        UNION SELECT word, lexeme, false FROM longer
        UNION SELECT word, lexeme, false FROM alike
    ) AS spelt
    CROSS JOIN LATERAL (
        SELECT coalesce(max(t.documents), 0) AS documents FROM search_terms AS t
        WHERE t.owner_id = :owner AND t.lexeme = spelt.lexeme
    ) AS counted
    CROSS JOIN owner
), groups AS MATERIALIZED (
    SELECT word, sum(documents) AS documents, min(idf) FILTER (WHERE own) AS own_idf,
        '(' || string_agg(quoted, '|') || ')' AS variants,
        '(' || string_agg(quoted, '|') FILTER (WHERE own) || ')' AS exact
    FROM (
        SELECT *, '''' || replace(replace(lexeme, '\\', '\\\\'), '''', '''''') || '''' AS quoted
        FROM members
    ) AS members
    GROUP BY word
), weighed AS MATERIALIZED (
    SELECT word, lexeme, members.documents,
        CASE WHEN own THEN idf ELSE 0.5 * least(idf, own_idf) END AS weight
    FROM members JOIN groups USING (word)
), query AS MATERIALIZED (
    SELECT
        CASE WHEN all_demanded THEN own && CAST(demanded AS tsquery) END AS required,
        own && CAST(all_words AS tsquery) AS all_of, own && CAST(any_word AS tsquery) AS any_of,
        CAST(exactly_all AS tsquery) AS exactly_all, CAST(exactly_any AS tsquery) AS exactly_any,
        CAST(shown AS tsquery) AS shown, vector, greatest(best, 1e-9) AS best, single
    FROM (
        SELECT CAST(quote_literal(search_owner_term(:owner)) AS tsquery) AS own,
            bool_and(demanded IS NOT NULL) AS all_demanded,
            string_agg(demanded, '|') AS demanded,
            string_agg(coalesce(demanded || '&', '') || all_words, '|') AS all_words,
            string_agg(coalesce(demanded || '&', '') || '(' || any_word || ')', '|') AS any_word,
            string_agg(exactly_all, '|') AS exactly_all,
            string_agg(exactly_any, '|') AS exactly_any, string_agg(shown, '|') AS shown
        FROM (
            SELECT alternative, demanded, string_agg(variants, '&') AS all_words,
                string_agg(variants, '|') FILTER (WHERE rarer < :max_retrieved_rows) AS any_word,
                string_agg(exact, '&') AS exactly_all, string_agg(exact, '|') AS exactly_any,
                string_agg(variants, '|') AS shown
            FROM alternatives LEFT JOIN demands USING (alternative) JOIN (
                SELECT *, coalesce(sum(documents) OVER (ORDER BY documents, word
                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS rarer
                FROM groups
            ) AS groups ON groups.word = ANY (alternatives.words)
            GROUP BY alternative, demanded
        ) AS alternatives
    ) AS parsed CROSS JOIN (
        SELECT search_vector(array_agg(search_dimension(lexeme)), array_agg(CAST(weight AS real)))
            AS vector
        FROM (SELECT lexeme, max(weight) AS weight FROM weighed GROUP BY lexeme) AS weighed
    ) AS vectors CROSS JOIN (
        SELECT {max_term_weight} * sum(best) AS best, count(*) = 1 AS single
        FROM (
            SELECT coalesce(max(weight) FILTER (WHERE documents > 0), max(weight)) AS best
            FROM weighed GROUP BY word
        ) AS groups
    ) AS bests
)
"""

MATCH_WORDS = """
, matching_all AS MATERIALIZED (
    SELECT d.item_id, -(d.weights <#> query.vector) AS bm25,
        CASE WHEN d.terms @@ query.exactly_all THEN 1 ELSE 2 END AS tier
    FROM query JOIN search_documents AS d ON d.terms @@ query.all_of
    WHERE d.owner_id = :owner AND {filters}
), matching_any AS MATERIALIZED (
    SELECT d.item_id, -(d.weights <#> query.vector) AS bm25,
        CASE WHEN d.terms @@ query.exactly_any THEN 3 ELSE 4 END AS tier
    FROM query JOIN search_documents AS d ON d.terms @@ query.any_of
    WHERE (SELECT count(*) FROM matching_all) < :min_full_matches
    AND d.item_id NOT IN (SELECT item_id FROM matching_all)
    AND d.owner_id = :owner AND {filters}
), lexical AS MATERIALIZED (
    SELECT *, count(*) OVER () AS matches,
        row_number() OVER (ORDER BY tier, bm25 DESC, item_id) AS rank
    FROM (SELECT * FROM matching_all UNION ALL SELECT * FROM matching_any) AS matched
    ORDER BY rank LIMIT :depth
)
"""

FIND_NEAREST = """
, nearest AS MATERIALIZED (
    SELECT n.*, row_number() OVER (ORDER BY n.similarity DESC, n.item_id) AS rank
    FROM query, search_nearest(
        :owner, CAST(:model AS integer), CAST(:vector AS halfvec), CAST(:depth AS integer),
        coalesce(query.required, ''),
        CAST(:min_price AS numeric), CAST(:max_price AS numeric),
        CAST(:created_after AS timestamptz), CAST(:created_before AS timestamptz)
    ) AS n
    WHERE query.all_of IS NOT NULL
)
"""

SCORE_HITS = {
    Mode.LEXICAL: """
, hits AS MATERIALIZED (
    SELECT item_id, bm25 AS score, rank AS lexical_rank, CAST(NULL AS bigint) AS semantic_rank,
        matches AS total, CAST(NULL AS text) AS plan
    FROM lexical
)
""",
    Mode.SEMANTIC: """
, hits AS MATERIALIZED (
    SELECT item_id, similarity AS score, CAST(NULL AS bigint) AS lexical_rank,
        rank AS semantic_rank, count(*) OVER () AS total, plan
    FROM nearest
)
""",
    Mode.HYBRID: """
, fused AS MATERIALIZED (
    SELECT item_id, l.rank AS lexical_rank, n.rank AS semantic_rank, max(plan) OVER () AS plan,
        tier, query.single, -(d.weights <#> query.vector) / query.best AS lexical,
        e.embedding <=> CAST(:vector AS halfvec) AS distance
    FROM lexical AS l FULL JOIN nearest AS n USING (item_id)
    CROSS JOIN query
    JOIN (SELECT * FROM search_documents WHERE owner_id = :owner) AS d USING (item_id)
    LEFT JOIN (
        SELECT * FROM search_embeddings WHERE owner_id = :owner AND model_id = :model
    ) AS e USING (item_id)
), scored AS MATERIALIZED (
    SELECT *, :lexical_weight * lexical / greatest(1, max(lexical) OVER ())
        + (1 - :lexical_weight)
            * coalesce((farthest - distance) / greatest(farthest - nearest, 1e-9), 0) AS score
    FROM (
        SELECT *, max(distance) OVER () AS farthest, min(distance) OVER () AS nearest FROM fused
    ) AS fused
), hits AS MATERIALIZED (
    SELECT item_id, lexical_rank, semantic_rank, count(*) OVER () AS total, plan,
        least(score, CASE WHEN single AND tier > 1
            THEN min(score) FILTER (WHERE tier = 1) OVER () END) AS score
    FROM scored
)
""",
}

SELECT_PAGE = """
SELECT counted.total, counted.plan, respelt.words AS respelt, active.id AS active_model, page.*,
    ts_headline('search', translate(page.title, :replaced, :replacements), query.shown,
        :title_options) AS marked_title,
    ts_headline('search', translate(page.description, :replaced, :replacements), query.shown,
        :description_options) AS marked_description
FROM (SELECT coalesce(max(total), 0) AS total, max(plan) AS plan FROM hits) AS counted
CROSS JOIN (
    SELECT jsonb_object_agg(word, spelt) AS words FROM alike
    WHERE place = 1 AND similarity(spelt, word) >= :typo_similarity
) AS respelt
CROSS JOIN query
LEFT JOIN search_models AS active ON active.active
LEFT JOIN (
    SELECT {columns}, hits.score, hits.lexical_rank, hits.semantic_rank
    FROM (SELECT * FROM hits ORDER BY {order} LIMIT :limit OFFSET :offset) AS hits
    JOIN items AS i ON i.owner_id = :owner AND i.id = hits.item_id
) AS page ON true
ORDER BY {order}
"""

SORT_ORDERS = {
    Mode.LEXICAL: "lexical_rank",
    Mode.SEMANTIC: "semantic_rank",
    Mode.HYBRID: "score DESC, lexical_rank, semantic_rank",
}
FILTER_CONDITIONS = {
    "min_price": "i.price >= :min_price",
    "max_price": "i.price <= :max_price",
    "created_after": "i.created_at > :created_after",
    "created_before": "i.created_at < :created_before",
}
ITEM_COLUMNS = ", ".join(f"i.{name}" for name in ItemPublic.model_fields)


@cache
def search_statement(mode: Mode, bounded: frozenset[str]) -> TextClause:
    """Returns the statement for a mode; `bounded` has the names of the filters that are set."""
    filters = "true"
    if bounded:
        bounds = " AND ".join(FILTER_CONDITIONS[name] for name in sorted(bounded))
        filters = (
            "EXISTS (SELECT FROM items AS i WHERE i.owner_id = :owner AND i.id = d.item_id"
            f" AND {bounds})"  # no user input
        )
    parts = [EXPAND_WORDS.format(max_term_weight=MAX_TERM_WEIGHT)]
    if mode is not Mode.SEMANTIC:
        parts.append(MATCH_WORDS.format(filters=filters))
    if mode is not Mode.LEXICAL:
        parts.append(FIND_NEAREST)
    parts += [SCORE_HITS[mode], SELECT_PAGE.format(columns=ITEM_COLUMNS, order=SORT_ORDERS[mode])]
    return text("".join(parts))
