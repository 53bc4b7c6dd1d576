"""Search, as the minimal server of the benchmarks answers it (tests/benchmarks/bare.py)."""

from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from features.search.embedding import to_pgvector
from features.search.embedding.local import LocalEmbedder
from features.search.query.highlighting import (
    DESCRIPTION_OPTIONS,
    REPLACED_CHARACTERS,
    REPLACEMENTS,
    TITLE_OPTIONS,
)
from features.search.query.parsing import parse_query
from features.search.query.ranking import CANDIDATES
from features.search.query.statement import search_statement
from features.search.schemas import Mode
from shared.auth import Principal
from shared.db.statements import compile_statement

embedder = cache(lambda: LocalEmbedder(None, 2))
vectors: dict[str, str] = {}
statements = {mode: search_statement(mode, frozenset()) for mode in Mode}


async def search(request: Request, principal: Principal) -> Response:
    from tests.benchmarks import bare  # late: it imports this module for its routes

    mode, parsed = Mode(request.query_params["mode"]), parse_query(request.query_params["q"])
    if mode is Mode.HYBRID and parsed.text_to_embed() not in vectors:
        vectors[parsed.text_to_embed()] = to_pgvector(
            await embedder().embed_query(parsed.text_to_embed())
        )
    values = {
        **parsed.parameters,
        "owner": principal.user_id,
        "min_full_matches": 10,
        "max_retrieved_rows": 20_000,
        "typo_similarity": 0.4,
        "lexical_weight": 0.6,
        "depth": 20 if mode is Mode.LEXICAL else CANDIDATES,
        "limit": 20,
        "offset": 0,
        "replaced": REPLACED_CHARACTERS,
        "replacements": REPLACEMENTS,
        "title_options": TITLE_OPTIONS,
        "description_options": DESCRIPTION_OPTIONS,
        "model": 1,
        "vector": vectors.get(parsed.text_to_embed()),
        **dict.fromkeys(("min_price", "max_price", "created_after", "created_before")),
    }
    sql, arguments = compile_statement(statements[mode], values)
    rows = await bare.pool.fetch(sql, *arguments)
    hits = [
        {
            "item": {name: row[name] for name in bare.COLUMNS.split(", ")}
            | {"price": float(row["price"])},
            "score": row["score"],
            "lexical_rank": row["lexical_rank"],
            "semantic_rank": row["semantic_rank"],
            "highlights": {"title": row["marked_title"], "description": row["marked_description"]},
        }
        for row in rows
        if row["id"]
    ]
    return bare.answer({"hits": hits, "total": rows[0]["total"], "mode": mode})
