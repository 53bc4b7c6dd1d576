"""Invalid and unusual input gets a clear 4xx or an empty result, never a 5xx."""

from typing import Any

import pytest
from httpx import AsyncClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.search.tests.conftest import Index

MODES = ["hybrid", "lexical", "semantic"]


@pytest.fixture
async def shop(client: AsyncClient, index: Index) -> AsyncClient:
    await client.post("/items", json={"title": "Enamel mug", "price": 5, "description": "Blue"})
    await index()
    return client


NO_WORD = ["the of and", "!!! ???", "🎧", "-mug", '""', "\u200b", "-", "''", "\\", "<"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_query_without_a_word_finds_nothing(shop: AsyncClient, mode: str) -> None:
    for q in NO_WORD:
        response = await shop.get("/search", params={"q": q, "mode": mode})
        assert response.status_code == 200, (q, response.text)
        assert (response.json()["hits"], response.json()["total"]) == ([], 0), q


ANY_TEXT = [
    "mug'; DROP TABLE items; --",
    "mug & | ! <-> :* ( ) <1> \\",
    "mug:*",
    "mug:A",
    "'mug'",
    'mug "unbalanced',
    '"mug" "',
    "mug\\",
    "mug\\'",
    "<script>mug</script>",
    "%mug%_",
    "مرحبا mug こんにちは Ελληνικά 你好",
    "mug " + "é" * 900,
    "mug " + "a b " * 200,
    "m" * 1000,
    "mug or",
    "or or or mug",
    "mug -",
    "\x01\x02\x03 mug",
    "mug\ud7ff\ufffd\uffff",
    "-" * 50,
    "mug " + "-" * 40,
    "- " * 40 + "mug",
    '-"' * 40,
    "-a " * 300,
    "-(" * 100 + "mug",
    "mug or " * 140,
    '"mug" or ' * 100,
    '"a b" ' * 160,
    "-" + "a-" * 400,
    '"' + "a " * 490 + '"',
    "你" * 1000,
    "😀é" * 500,
    "𠀀" * 1000,
    "'" * 1000,
    "\\" * 999 + "'",
    "mug " + "/a" * 490,
    "a.b@c.de:80/x?y=z " * 50,
]


@pytest.mark.parametrize("mode", MODES)
async def test_any_text_is_a_query(shop: AsyncClient, mode: str) -> None:
    for q in ANY_TEXT:
        response = await shop.get("/search", params={"q": q, "mode": mode})
        assert response.status_code == 200, (q, response.text)


@given(
    st.lists(
        st.sampled_from(
            ['"', "-", " ", "or", "mug", "a", "'", "\\", "|", "&", "!", ":*", "(", ")"]
        ),
        min_size=1,
        max_size=120,
    ).map("".join)
)
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_any_operators_are_a_query(shop: AsyncClient, q: str) -> None:
    response = await shop.get("/search", params={"q": q, "mode": "lexical"})
    assert response.status_code == (200 if q.strip() else 422), (q, response.text)


BAD_PARAMETERS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "/q", "Field required"),
    ({"q": ""}, "/q", "at least 1 character"),
    ({"q": "  \t\n"}, "/q", "must not be blank"),
    ({"q": "m" * 1001}, "/q", "at most 1000 characters"),
    ({"q": "m" * 10_000}, "/q", "at most 1000 characters"),
    ({"q": "mug\x00"}, "/q", "NUL"),
    ({"q": "mug", "limit": 0}, "/limit", "greater than or equal to 1"),
    ({"q": "mug", "limit": 10**9}, "/limit", "less than or equal to 100"),
    ({"q": "mug", "limit": "many"}, "/limit", "valid integer"),
    ({"q": "mug", "offset": -1}, "/offset", "greater than or equal to 0"),
    ({"q": "mug", "offset": 10**9}, "/offset", "less than or equal to 10000"),
    ({"q": "mug", "mode": "magic"}, "/mode", "'hybrid', 'lexical' or 'semantic'"),
    ({"q": "mug", "min_price": "cheap"}, "/min_price", "valid decimal"),
    ({"q": "mug", "min_price": "NaN"}, "/min_price", "finite"),
    ({"q": "mug", "created_after": "yesterday"}, "/created_after", "a time with its offset"),
    ({"q": "mug", "colour": "red"}, "/colour", "Unknown parameter"),
]


async def test_a_bad_parameter_is_named(client: AsyncClient, subtests: pytest.Subtests) -> None:
    for parameters, pointer, detail in BAD_PARAMETERS:
        with subtests.test(parameters=parameters, pointer=pointer, detail=detail):
            response = await client.get("/search", params=parameters)
            assert response.status_code == 422, response.text
            (error,) = response.json()["errors"]
            assert (error["location"], error["pointer"]) == ("query", pointer)
            assert detail in error["detail"]


BAD_VECTORS: list[tuple[str, str]] = [
    ("[]", "at least 1 item"),
    ("[1, 2, 3]", "The vector has 3 numbers, but needs 384 numbers (all-MiniLM-L6-v2)"),
    (f"[{'0,' * 383}0]", "all zeros"),
    (f"[{'NaN,' * 383}1]", "finite number"),
    (f"[{'1e999,' * 383}1]", "finite number"),
    (f'[{"1," * 383}"a"]', "valid number"),
    (f"[{'1,' * 5000}1]", "at most 4000 items"),
    ("null", "valid list"),
]


async def test_a_bad_vector_is_refused(shop: AsyncClient, subtests: pytest.Subtests) -> None:
    for vector, detail in BAD_VECTORS:
        with subtests.test(vector=vector, detail=detail):
            response = await shop.post(
                "/search/vector",
                content=f'{{"vector": {vector}}}',
                headers={"Content-Type": "application/json"},
            )
            assert response.status_code == 422, response.text
            error = response.json()["errors"][0]
            assert error["pointer"].startswith("/vector")
            assert detail in error["detail"]


async def test_a_vector_of_any_length_has_a_direction(shop: AsyncClient) -> None:
    for scale in (1e-300, 1.0, 1e300):
        response = await shop.post("/search/vector", json={"vector": [scale] * 384})
        assert response.status_code == 200, response.text
        assert response.json()["total"] == 1


async def test_an_item_that_does_not_exist_has_no_similar_ones(client: AsyncClient) -> None:
    assert (await client.get("/items/nonsense/similar")).status_code == 422
    response = await client.get("/items/00000000-0000-7000-8000-000000000000/similar")
    assert response.status_code == 404
