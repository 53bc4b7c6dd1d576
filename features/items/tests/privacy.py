"""How an account comes to have something of each kind, for tests/contract/test_privacy.py: for each
parameter in a path. What is written has the mark in it, by which a leak is seen."""

from httpx import AsyncClient


async def item(client: AsyncClient, mark: str) -> str:
    new = {
        "title": f"{mark} lamp",
        "price": 19.99,
        "description": f"A {mark}",
        "external_id": f"{mark}-1",
    }
    return str((await client.post("/items", json=new)).json()["id"])


OWNED = {"item_id": item}

SENT = {
    "POST /items/import": {
        "content": b'{"title": "Mug", "price": 1}',
        "headers": {"Content-Type": "application/jsonl"},
    },
}
"""What is sent where the document has no example: arguments of a request of httpx."""
