"""Registration: one account per email, even with concurrent requests."""

import asyncio

import pytest
from httpx import AsyncClient

from features.users.tests.conftest import SentMail, by_password, register, tokens_of
from tests.kit import PASSWORD


@pytest.mark.verify
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


@pytest.mark.parametrize(
    ("registered", "kept"),
    [
        ("carl@xn--bcher-kva.example.com", "carl@bücher.example.com"),
        ("Carl@Bücher.example.com", "carl@bücher.example.com"),
        (" erik@example.com ", "erik@example.com"),
        ("Name <dora@example.com>", "dora@example.com"),
    ],
)
async def test_an_account_is_found_however_its_address_is_spelled(
    anonymous: AsyncClient, admin: AsyncClient, sent_mail: SentMail, registered: str, kept: str
) -> None:
    await register(anonymous, registered)
    for spelling in (registered, kept, kept.upper()):
        tokens_of(await by_password(anonymous, spelling))
        found = (await admin.get("/users", params={"q": spelling})).json()["items"]
        assert [user["email"] for user in found] == [kept]
    again = await anonymous.post("/users", json={"email": kept, "password": PASSWORD})
    assert again.status_code == 409
    assert len(await sent_mail(kept)) == 1
