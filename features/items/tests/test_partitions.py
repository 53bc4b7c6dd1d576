"""Items that are partitioned as `migrations/README.md` says are served as plain ones are."""

import re
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from httpx import AsyncClient

README = Path(__file__).resolve().parents[3] / "migrations" / "README.md"
FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)


@pytest.mark.one_server
@pytest.mark.parametrize("cut", [FIRST, LAST], ids=["a new partition", "the table so far"])
async def test_partitioned_items_answer_as_plain_ones_do(
    client: AsyncClient, database_url: str, cut: UUID
) -> None:
    [recipe] = re.findall(r"```sql\n(ALTER TABLE items .*?)```", README.read_text(), re.DOTALL)
    database = await asyncpg.connect(database_url)
    await database.execute(recipe.replace(":cut", f"'{cut}'"))
    await database.close()
    mug = {"external_id": "a", "title": "Mug", "price": 5}
    made = await client.post("/items", json=mug)
    taken = await client.post("/items", json=mug)
    assert (made.status_code, taken.status_code) == (201, 409)
    rows = "external_id,title,price\na,Cup,5\na,Cup,5\nb,Pan,7\n"
    report = await client.post("/items/import", content=rows, headers={"Content-Type": "text/csv"})
    counts = {name: report.json()[name] for name in ("created", "updated", "unchanged")}
    assert counts == {"created": 1, "updated": 1, "unchanged": 1}
    changed = await client.patch(made.headers["location"], json={"price": 6})
    assert changed.json()["title"] == "Cup"
    assert (await client.get("/items")).json()["total"] == 2
