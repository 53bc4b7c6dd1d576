"""Search over HTTP: the hits, their order, and the isolation of owners."""

from typing import Any
from uuid import UUID

import pytest
from httpx import AsyncClient

from features.search.embedding import Embedders, EmbeddingModel, EmbeddingUnavailable, Vector
from features.search.query import ranking
from features.search.tests.conftest import Index

CATALOGUE = [
    {
        "title": "Wireless noise-cancelling headphones",
        "price": 199.0,
        "description": "Over the ear",
    },
    {"title": "USB hub with four ports", "price": 19.99, "description": "For a laptop"},
    {"title": "Gaming laptop 15 inch", "price": 1299.0, "description": "Fast graphics"},
    {"title": "Laptop sleeve", "price": 25.0, "description": "Keeps scratches away"},
    {"title": "Red enamel mug", "price": 9.5, "description": "For coffee by the fire"},
    {"title": "Blue enamel mug", "price": 9.5},
]


@pytest.fixture
async def shop(client: AsyncClient, index: Index) -> AsyncClient:
    for item in CATALOGUE:
        assert (await client.post("/items", json=item)).status_code == 201
    await index()
    return client


async def find(client: AsyncClient, q: str, **parameters: Any) -> dict[str, Any]:
    response = await client.get("/search", params={"q": q, **parameters})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def titles(answer: dict[str, Any]) -> list[str]:
    return [hit["item"]["title"] for hit in answer["hits"]]


@pytest.mark.parametrize("mode", ["hybrid", "lexical", "semantic"])
async def test_the_best_comes_first_in_every_mode(shop: AsyncClient, mode: str) -> None:
    answer = await find(shop, "gaming laptop", mode=mode)
    assert titles(answer)[0] == "Gaming laptop 15 inch"
    assert answer["mode"] == mode
    assert answer["degraded"] is False
    scores = [hit["score"] for hit in answer["hits"]]
    assert scores == sorted(scores, reverse=True)


async def test_an_item_is_found_by_its_words_as_soon_as_it_is_created(client: AsyncClient) -> None:
    await client.post("/items", json={"title": "Copper kettle", "price": 30})
    assert titles(await find(client, "kettle", mode="lexical")) == ["Copper kettle"]
    hybrid = await find(client, "kettle")
    assert titles(hybrid) == ["Copper kettle"]
    assert hybrid["degraded"] is True  # nothing has been embedded yet


async def test_a_change_is_found_at_once_and_what_was_is_not(shop: AsyncClient) -> None:
    (hit,) = (await find(shop, "hub", mode="lexical"))["hits"]
    path = f"/items/{hit['item']['id']}"
    await shop.patch(path, json={"title": "Docking station"})
    assert titles(await find(shop, "docking", mode="lexical")) == ["Docking station"]
    assert titles(await find(shop, "hub", mode="lexical")) == []
    await shop.delete(path)
    assert titles(await find(shop, "docking", mode="lexical")) == []


async def test_what_is_asked_for_in_other_words_is_found_by_meaning(shop: AsyncClient) -> None:
    answer = await find(shop, "something to drink tea from", mode="semantic")
    assert set(titles(answer)[:2]) == {"Red enamel mug", "Blue enamel mug"}
    assert answer["hits"][0]["semantic_rank"] == 1
    assert answer["hits"][0]["lexical_rank"] is None
    assert set(titles(await find(shop, "cup for tea"))[:2]) == {"Red enamel mug", "Blue enamel mug"}


async def test_items_of_others_do_not_exist(shop: AsyncClient, other_client: AsyncClient) -> None:
    item_id = (await find(shop, "mug"))["hits"][0]["item"]["id"]
    for mode in ("hybrid", "lexical", "semantic"):
        answer = await find(other_client, "mug", mode=mode)
        assert (answer["hits"], answer["total"]) == ([], 0)
    similar = await other_client.get(f"/items/{item_id}/similar")
    assert similar.status_code == 404
    assert similar.json()["detail"] == f"Item {item_id} not found"
    nearest = await other_client.post("/search/vector", json={"vector": [1.0] * 384})
    assert nearest.json()["hits"] == []
    assert (await other_client.get("/search/status")).json()["indexed"] == 0


async def test_nobody_can_name_another_owner_in_an_item(
    client: AsyncClient, other_client: AsyncClient, index: Index
) -> None:
    victim = (await other_client.get("/users/me")).json()["id"]
    for title in (f"Mug {victim}", f"{victim}/mug", f"mug ' {victim}'", f'mug "\\ {victim}"'):
        assert (await client.post("/items", json={"title": title, "price": 1})).is_success
    await index()
    for mode in ("hybrid", "lexical", "semantic"):
        for q in ("mug", victim, f"mug {victim}", f'"{victim}" or mug', "mug -kettle"):
            answer = await find(other_client, q, mode=mode)
            assert (answer["hits"], answer["total"]) == ([], 0), (mode, q)


async def test_the_beginning_of_the_owners_id_is_a_word_like_others(client: AsyncClient) -> None:
    for title in ("Silk tunic", "Plain woollen hoodie"):  # no word begins like a part of an id
        await client.post("/items", json={"title": title, "price": 9})
    owner = (await client.get("/users/me")).json()["id"]
    for q in (owner[:4], owner[:8], owner, f'"{owner}"'):
        assert titles(await find(client, q, mode="lexical")) == []


async def test_a_token_is_needed(anonymous: AsyncClient) -> None:
    assert (await anonymous.get("/search", params={"q": "mug"})).status_code == 401


async def test_items_with_all_words_come_before_those_with_some(shop: AsyncClient) -> None:
    answer = await find(shop, "enamel laptop mug blue", mode="lexical")
    assert len(answer["hits"]) == answer["total"] == 5
    assert titles(await find(shop, "blue mug", mode="lexical"))[0] == "Blue enamel mug"


OPERATORS: list[tuple[str, set[str]]] = [
    ('"laptop sleeve"', {"Laptop sleeve"}),
    ('"sleeve laptop"', set()),
    ("mug -red", {"Blue enamel mug"}),
    ('enamel -"red enamel"', {"Blue enamel mug"}),
    ("sleeve or hub", {"Laptop sleeve", "USB hub with four ports"}),
    ('"laptop sleeve" or hub', {"Laptop sleeve", "USB hub with four ports"}),
    ('hub OR "laptop sleeve"', {"Laptop sleeve", "USB hub with four ports"}),
    ('"sleeve laptop" or hub', {"USB hub with four ports"}),
    ("mug -red or hub", {"Blue enamel mug", "USB hub with four ports"}),
    ("mug -red or mug -blue", {"Blue enamel mug", "Red enamel mug"}),
    ('"the of" or hub', {"USB hub with four ports"}),
    ("or hub or", {"USB hub with four ports"}),
    ("MUG", {"Red enamel mug", "Blue enamel mug"}),
    ("mugs", {"Red enamel mug", "Blue enamel mug"}),
    ("-mug", set()),
]


async def test_operators(shop: AsyncClient, subtests: pytest.Subtests) -> None:
    for q, found in OPERATORS:
        with subtests.test(q=q, found=found):
            assert set(titles(await find(shop, q, mode="lexical"))) == found


async def test_exclusions_and_phrases_hold_for_the_meaning_too(shop: AsyncClient) -> None:
    for mode in ("semantic", "hybrid"):
        assert "Red enamel mug" not in titles(await find(shop, "cup -red", mode=mode))
        assert titles(await find(shop, 'bag "laptop sleeve"', mode=mode)) == ["Laptop sleeve"]


@pytest.mark.parametrize("q", ["lapt", "gaming lapt", "gamin"])
async def test_the_last_word_may_be_unfinished(shop: AsyncClient, q: str) -> None:
    assert "Gaming laptop 15 inch" in titles(await find(shop, q, mode="lexical"))


async def test_a_finished_word_is_not_completed(shop: AsyncClient) -> None:
    assert titles(await find(shop, "lap ", mode="lexical")) == []
    assert len(titles(await find(shop, "lap", mode="lexical"))) == 3


async def test_only_the_last_word_is_unfinished(shop: AsyncClient) -> None:
    assert len(titles(await find(shop, "lap enamel lap", mode="lexical"))) == 5
    assert len(titles(await find(shop, "ename lap ename ", mode="lexical"))) == 2


@pytest.mark.parametrize("q", ["headphnes", "hedphones wireless", "wireles"])
async def test_a_misspelt_word_finds_its_neighbour(shop: AsyncClient, q: str) -> None:
    assert titles(await find(shop, q, mode="lexical"))[0] == "Wireless noise-cancelling headphones"


async def test_a_misspelt_word_is_understood(shop: AsyncClient) -> None:
    answer = await find(shop, "headphnes", mode="semantic", explain=True)
    assert answer["explanation"]["respelt"] == {"headphnes": "headphones"}
    assert titles(answer)[0] == "Wireless noise-cancelling headphones"


async def test_what_a_misspelt_word_may_mean_is_not_needed(
    shop: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_query = Embedders.embed_query

    async def refuse(self: Embedders, owner_id: UUID, model: EmbeddingModel, text: str) -> Vector:
        if text == "headphones":
            raise EmbeddingUnavailable("busy")
        return await embed_query(self, owner_id, model, text)

    monkeypatch.setattr(Embedders, "embed_query", refuse)
    for mode in ("semantic", "hybrid"):
        answer = await find(shop, "headphnes", mode=mode, explain=True)
        assert answer["hits"]
        assert not answer["degraded"]
        assert answer["explanation"]["model"]
        assert answer["explanation"]["respelt"] == {}


async def test_an_exact_word_is_ahead_of_its_neighbours(client: AsyncClient, index: Index) -> None:
    for title in ("Slide projector", "Slider", "Slides for a projector", "Slidr"):
        await client.post("/items", json={"title": title, "price": 5})
    await index()
    answer = titles(await find(client, "slidr", mode="lexical"))
    assert answer == ["Slidr"]
    assert titles(await find(client, "slider", mode="lexical"))[0] == "Slider"


@pytest.mark.parametrize("mode", ["hybrid", "lexical"])
async def test_a_finished_word_is_ahead_of_a_longer_one(
    client: AsyncClient, index: Index, mode: str
) -> None:
    long = "For everything at home and on the way. " * 20 + "It comes with a cable."
    for title, description in (("Cablecar", None), ("Charger", long), ("Cablecars", "Cablecar")):
        item = {"title": title, "description": description, "price": 5}
        assert (await client.post("/items", json=item)).status_code == 201
    await index()
    answer = await find(client, "cable", mode=mode)
    assert titles(answer)[0] == "Charger"
    assert len(answer["hits"]) == 3


async def test_short_items_with_rare_words_rank_first(client: AsyncClient, index: Index) -> None:
    long = "A cable among many other things that this long description tells about at length"
    for title, description in [
        ("Cable", long),
        ("Braided cable", None),
        ("Cable", "Cable, cable and more cable"),
        ("Lightning cable", None),
    ]:
        item = {"title": title, "description": description, "price": 5}
        assert (await client.post("/items", json=item)).status_code == 201
    await index()
    assert titles(await find(client, "lightning cable", mode="lexical"))[0] == "Lightning cable"
    assert (await find(client, "cable", mode="lexical"))["hits"][-1]["item"]["description"] == long


@pytest.mark.parametrize("mode", ["hybrid", "lexical", "semantic"])
async def test_filters_apply_in_every_mode(shop: AsyncClient, mode: str) -> None:
    cheap = await find(shop, "laptop", mode=mode, max_price=25)
    assert "Laptop sleeve" in titles(cheap)
    assert all(hit["item"]["price"] <= 25 for hit in cheap["hits"])
    assert "Gaming laptop 15 inch" in titles(await find(shop, "laptop", mode=mode, min_price=1000))
    assert titles(await find(shop, "laptop", mode=mode, created_after="2099-01-01T00:00:00Z")) == []
    assert (
        titles(await find(shop, "laptop", mode=mode, created_before="2001-01-01T00:00:00Z")) == []
    )


@pytest.mark.parametrize("mode", ["hybrid", "lexical", "semantic"])
async def test_pages_add_up_to_the_whole(shop: AsyncClient, mode: str) -> None:
    whole = await find(shop, "enamel mug laptop", mode=mode, limit=100)
    assert len(whole["hits"]) == whole["total"]
    pages = [
        await find(shop, "enamel mug laptop", mode=mode, limit=2, offset=offset)
        for offset in range(0, whole["total"] + 1, 2)
    ]
    assert [hit for page in pages for hit in page["hits"]] == whole["hits"]
    beyond = await find(shop, "enamel mug laptop", mode=mode, offset=1000)
    assert (beyond["hits"], beyond["total"]) == ([], whole["total"])


async def test_highlights_are_safe_html(client: AsyncClient) -> None:
    title = "<script>alert('mug')</script> & \x02mug\x03"
    await client.post(
        "/items", json={"title": title, "price": 1, "description": "No <b>mug</b> here"}
    )
    (hit,) = (await find(client, "mug", mode="lexical"))["hits"]
    assert hit["highlights"] == {
        "title": "&lt;script&gt;alert(&#x27;<mark>mug</mark>&#x27;)&lt;/script&gt; "
        "&amp; <mark>mug</mark>",
        "description": "No &lt;b&gt;<mark>mug</mark>&lt;/b&gt; here",
    }


async def test_a_highlight_shows_where_the_words_are(client: AsyncClient) -> None:
    description = "Nothing to see here. " * 60 + "At last a mug of enamel. " + "And so on. " * 60
    await client.post("/items", json={"title": "Cup", "price": 1, "description": description})
    (hit,) = (await find(client, "mug enamel", mode="lexical"))["hits"]
    assert "<mark>mug</mark> of <mark>enamel</mark>" in hit["highlights"]["description"]


async def test_common_words_are_highlighted_too(
    shop: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "MAX_RETRIEVED_ROWS", 1)
    (hit,) = (await find(shop, "red mug", mode="lexical"))["hits"]
    assert hit["highlights"]["title"] == "<mark>Red</mark> enamel <mark>mug</mark>"


async def test_an_answer_explains_itself_on_demand(shop: AsyncClient) -> None:
    explanation = (await find(shop, "mug", explain=True))["explanation"]
    assert explanation["plan"] == "exact"
    assert explanation["model"] == "all-MiniLM-L6-v2"
    assert (await find(shop, "mug"))["explanation"] is None
