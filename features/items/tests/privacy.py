"""For tests/contract/test_privacy.py: creates an object of the account for each path parameter.

The text that is written contains the mark, so that a leak can be detected.
"""

from httpx import AsyncClient


async def item(client: AsyncClient, mark: str) -> str:
    new = {
        "title": f"{mark} lamp",
        "price": 19.99,
        "description": f"A {mark}",
        "external_id": f"{mark}-1",
    }
    return str((await client.post("/items", json=new)).json()["id"])


OWNED_PARAMETERS = {"item_id": item}

REQUEST_ARGUMENTS = {
    "POST /items/import": {
        "content": b'{"title": "Mug", "price": 1}',
        "headers": {"Content-Type": "application/jsonl"},
    },
}
"""Arguments of httpx requests for operations without an example in the document."""
