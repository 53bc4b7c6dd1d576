"""The ranking must not get worse on the project's own collection of judged queries."""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
from httpx import AsyncClient

import features.items
from features.search.schemas import Mode
from features.search.tests.conftest import Index
from features.search.tests.measures import Judgements, misspell, quality

pytestmark = pytest.mark.verify

JUDGED = Path(__file__).parent / "relevance"
CATALOGUE = Path(features.items.__file__).parent / "demo.jsonl"

FLOORS = {Mode.LEXICAL: 0.67, Mode.SEMANTIC: 0.78, Mode.HYBRID: 0.80}
MISSPELT_FLOOR = 0.65  # hybrid, with a typo in each query
"""Minimum nDCG@10 by mode, 0.01 below the measured values."""


def judgements() -> dict[str, Judgements]:
    judged: dict[str, dict[str, int]] = defaultdict(dict)
    with (JUDGED / "judgements.tsv").open() as rows:
        for query_id, item, grade in csv.reader(rows, delimiter="\t"):
            judged[query_id][item] = int(grade)
    return dict(judged)


def queries() -> dict[str, str]:
    lines = (JUDGED / "queries.jsonl").read_text().splitlines()
    return {query["id"]: query["text"] for query in map(json.loads, lines)}


async def rank(client: AsyncClient, queries: Mapping[str, str], mode: Mode) -> dict[str, list[str]]:
    rankings = {}
    for query_id, text in queries.items():
        answer = await client.get("/search", params={"q": text, "mode": mode, "limit": 100})
        rankings[query_id] = [hit["item"]["external_id"] for hit in answer.json()["hits"]]
    return rankings


async def test_relevance(client: AsyncClient, index: Index) -> None:
    headers = {"Content-Type": "application/jsonl"}
    body = CATALOGUE.read_bytes()
    report = await client.post("/items/import", content=body, headers=headers)
    assert report.json()["rejected"] == 0
    await index()
    judged = judgements()
    measured = {mode: quality(await rank(client, queries(), mode), judged) for mode in Mode}
    for mode, floor in FLOORS.items():
        assert measured[mode].ndcg >= floor, measured
    misspelt = {query_id: misspell(text) for query_id, text in queries().items()}
    found = quality(await rank(client, misspelt, Mode.HYBRID), judged)
    assert found.ndcg >= MISSPELT_FLOOR, found
    hybrid = measured.pop(Mode.HYBRID)
    assert all(hybrid.ndcg > part.ndcg for part in measured.values()), measured
