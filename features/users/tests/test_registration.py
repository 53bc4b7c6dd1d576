"""One email, one account, however many ask for it at once."""

import asyncio

from httpx import AsyncClient

from shared.testing import PASSWORD


async def test_ten_registrations_at_once_make_one_account(anonymous: AsyncClient) -> None:
    for round_ in range(100):
        spellings = [f"Ada{round_}@Example.com", f"ada{round_}@example.com"] * 5
        answers = await asyncio.gather(
            *(
                anonymous.post("/users", json={"email": email, "password": PASSWORD})
                for email in spellings
            )
        )
        assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9
        refused = next(answer for answer in answers if answer.status_code == 409)
        assert refused.json()["detail"] == "An account with this email already exists"
