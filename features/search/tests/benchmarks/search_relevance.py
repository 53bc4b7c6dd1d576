"""Measures relevance by human judgements, the speed of indexing, and the latency of /search.

python -m features.search.tests.benchmarks.search_relevance [FOLDER]

FOLDER has items.jsonl.gz (id, title, description, price), queries.jsonl (id, text) and qrels.tsv
(query_id, item_id, grade); the default is chorus. Odd and even queries are reported separately:
parameters tuned on one half have to hold for the other.
"""

import asyncio
import csv
import gzip
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import quantiles
from typing import Any

import asyncpg
from fastapi import FastAPI
from httpx import AsyncClient

from app.main import create_app
from app.task_runner import run_until_idle
from features.search.query import ranking
from features.search.tests.measures import Judgements, misspell, quality
from shared.settings import Settings
from shared.tasks import Task
from tests.benchmarks.common import DATA, migrated_database
from tests.kit import PASSWORD, connect, sign_in

DEPTH = 200
PAGE = 100
MODES = ("lexical", "semantic", "hybrid")
PLAIN_INDEX = """
CREATE TEMPORARY TABLE plain AS
SELECT id, external_id,
    to_tsvector('english', title || ' ' || coalesce(description, '')) AS document
FROM items
"""
TS_RANK = """
SELECT external_id FROM plain, (SELECT {query} AS query) AS parsed
WHERE document @@ query ORDER BY ts_rank(document, query) DESC, id LIMIT 200
"""
ALL_WORDS = "websearch_to_tsquery('english', $1)"
ANY_WORD = "replace(plainto_tsquery('english', $1)::text, '&', '|')::tsquery"

FUSED = 200  # rows of each ranking, as in the search
RRF_K = 60  # Cormack, Clarke & Büttcher 2009
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)

Rankings = dict[str, list[str]]
Scores = dict[str, dict[str, float]]
"""Scores by query and item, best first."""


@dataclass(frozen=True)
class Collection:
    items: list[dict[str, Any]]
    queries: dict[str, str]
    judged: Mapping[str, Judgements]


def read(folder: Path) -> Collection:
    judged: dict[str, dict[str, int]] = defaultdict(dict)
    with (folder / "qrels.tsv").open() as rows:
        for row in csv.DictReader(rows, delimiter="\t"):
            judged[row["query_id"]][row["item_id"]] = int(row["grade"])
    with gzip.open(folder / "items.jsonl.gz", "rt") as lines:
        items = [json.loads(line) for line in lines]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").open()]
    relevant = [query for query in queries if any(judged[query["id"]].values())]
    return Collection(items, {query["id"]: query["text"] for query in relevant}, judged)


async def import_all(client: AsyncClient, items: Sequence[Mapping[str, Any]]) -> None:
    lines = [
        json.dumps(
            {
                "external_id": item["id"],
                "title": item["title"][:200],
                "description": (item.get("description") or "")[:10_000] or None,
                "price": item.get("price") or 1,
            }
        )
        for item in items
    ]
    headers = {"Content-Type": "application/jsonl"}
    started = time.perf_counter()
    report = await client.post("/items/import", content="\n".join(lines), headers=headers)
    assert report.json()["rejected"] == 0, report.text
    print(f"import: {len(items) / (time.perf_counter() - started):,.0f} items/s, all found by word")


async def load(app: FastAPI, client: AsyncClient, items: Sequence[Mapping[str, Any]]) -> None:
    await import_all(client, items)
    for task in search_tasks(app):
        started = time.perf_counter()
        done = await run_until_idle(app, task)
        print(f"{task.name}: {done / (time.perf_counter() - started):,.0f} rows/s")


def search_tasks(app: FastAPI) -> list[Task]:
    return [task for task in app.state.tasks if task.channel == "search"]


async def rank(client: AsyncClient, queries: Mapping[str, str], mode: str) -> Scores:
    rankings: Scores = {}
    for query_id, text in queries.items():
        hits: list[dict[str, Any]] = []
        for offset in range(0, DEPTH, PAGE):
            page: dict[str, str | int] = {"q": text, "mode": mode, "limit": PAGE, "offset": offset}
            hits += (await client.get("/search", params=page)).json()["hits"]
        rankings[query_id] = {hit["item"]["external_id"]: hit["score"] for hit in hits}
    return rankings


def fuse(parts: Sequence[Scores], score: Callable[[dict[str, float]], dict[str, float]]) -> Scores:
    """Fuses rankings by the sum of the scores that `score` assigns to the items of each."""
    fused: Scores = {}
    for query_id in parts[0]:
        total: Counter[str] = Counter()
        for part in parts:
            total.update(score(dict(islice(part[query_id].items(), FUSED))))
        fused[query_id] = dict(total.most_common())
    return fused


def reciprocal_rank(scores: dict[str, float]) -> dict[str, float]:
    return {item: 1 / (RRF_K + place) for place, item in enumerate(scores, 1)}


def min_max(scores: dict[str, float]) -> dict[str, float]:
    low, high = min(scores.values(), default=0), max(scores.values(), default=0)
    return {item: (score - low) / ((high - low) or 1) for item, score in scores.items()}


async def ts_rank(url: str, queries: Mapping[str, str], query: str) -> Rankings:
    connection = await asyncpg.connect(url)
    await connection.execute(PLAIN_INDEX)
    rankings = {
        query_id: [row[0] for row in await connection.fetch(TS_RANK.format(query=query), text)]
        for query_id, text in queries.items()
    }
    await connection.close()
    return rankings


def report(
    name: str, rankings: Mapping[str, Iterable[str]], judged: Mapping[str, Judgements]
) -> None:
    ids = list(rankings)
    cells = [name]
    for part in (ids, ids[::2], ids[1::2]):
        measured = quality({query: list(rankings[query]) for query in part}, judged)
        cells.append(f"{measured.ndcg:.3f} / {measured.condensed_ndcg:.3f}")
        if part is ids:
            cells += [f"{measured.judged:.2f}", f"{measured.recall:.2f}"]
    print("| " + " | ".join(cells) + " |")


async def latency(client: AsyncClient, queries: Mapping[str, str], name: str) -> None:
    times: dict[str, list[float]] = defaultdict(list)
    for text in queries.values():
        started = time.perf_counter()
        answer = await client.get("/search", params={"q": text, "explain": True})
        whole = (time.perf_counter() - started) * 1000
        explanation = answer.json()["explanation"]
        times["whole"].append(whole)
        times["embedding"].append(explanation["embedding_ms"])
        times["SQL"].append(explanation["sql_ms"])
        times["rest"].append(whole - explanation["embedding_ms"] - explanation["sql_ms"])
    cells = [
        f"{_percentile(values, 50):.1f} / {_percentile(values, 95):.1f}"
        for values in times.values()
    ]
    print(f"| {name} | " + " | ".join(cells) + " |")


def _percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


async def measure(settings: Settings, collection: Collection) -> None:
    assert settings.database_url
    app = create_app(settings.model_copy(update={"max_body_size": 10**9}), run_tasks=False)
    async with app.router.lifespan_context(app), connect(app, timeout=600) as client:
        await sign_in(app, client, "bench@example.com")
        await load(app, client, collection.items)
        queries, judged = collection.queries, collection.judged
        print("\n| nDCG@10 plain / condensed | all | judged@10 | recall@100 | odd | even |")
        print("|---|---|---|---|---|---|")
        for name, query in (("all words, ts_rank", ALL_WORDS), ("any word, ts_rank", ANY_WORD)):
            report(name, await ts_rank(settings.database_url, queries, query), judged)
        await compare(client, queries, judged)
    async with app.router.lifespan_context(app), connect(app, timeout=600) as client:
        await sign_in_again(client)
        print("\n| hybrid /search, ms p50 / p95 | whole | embedding | SQL | rest |")
        print("|---|---|---|---|---|")
        for name in ("cold query cache", "warm query cache"):
            await latency(client, queries, name)


async def compare(
    client: AsyncClient, queries: Mapping[str, str], judged: Mapping[str, Judgements]
) -> None:
    """Reports each mode, each mode with a typo in each query, and other ways of fusion."""
    found = {mode: await rank(client, queries, mode) for mode in MODES}
    for mode in MODES:
        report(mode, found[mode], judged)
    misspelt = {query_id: misspell(text) for query_id, text in queries.items()}
    for mode in MODES:
        report(f"{mode}, a typo in each query", await rank(client, misspelt, mode), judged)
    parts = [found["lexical"], found["semantic"]]
    report("reciprocal rank fusion", fuse(parts, reciprocal_rank), judged)
    report("min-max of each, half and half", fuse(parts, min_max), judged)
    chosen = ranking.LEXICAL_WEIGHT
    for share in SHARES:
        ranking.LEXICAL_WEIGHT = share
        report(f"hybrid, {share:.0%} words", await rank(client, queries, "hybrid"), judged)
    ranking.LEXICAL_WEIGHT = chosen


async def sign_in_again(client: AsyncClient) -> None:
    form = {"grant_type": "password", "username": "bench@example.com", "password": PASSWORD}
    token = (await client.post("/auth/token", data=form)).json()["access_token"]
    client.headers["Authorization"] = f"Bearer {token}"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "chorus"
    if not folder.exists():
        print(f"search relevance: no trial data at {folder}")
        return
    with migrated_database() as settings:
        asyncio.run(measure(settings, read(folder)))


if __name__ == "__main__":
    main()
