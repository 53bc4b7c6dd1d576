"""Access tokens and the keys that sign them."""

from datetime import timedelta

import time_machine
from fastapi import FastAPI
from httpx import AsyncClient
from joserfc import jwt
from joserfc.jwk import KeySet
from joserfc.jws import extract_compact

from features.users.state import state_of
from features.users.tests.conftest import (
    Execute,
    Tokens,
    by_password,
    by_refresh,
    register,
    status_with,
    tokens_of,
)
from tests.kit import Command, connect, eventually

ALL_CLAIMS = {"iss", "aud", "sub", "sid", "iat", "exp", "jti", "scope"}


async def test_anybody_can_verify_a_token_with_the_published_keys(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    published = await anonymous.get("/.well-known/jwks.json")
    assert published.headers["cache-control"] == "public, max-age=300"
    (key,) = published.json()["keys"]
    assert "d" not in key
    assert (key["kty"], key["crv"], key["alg"], key["use"]) == ("OKP", "Ed25519", "Ed25519", "sig")

    token = jwt.decode(signed_in.access, KeySet.import_key_set(published.json()), ["Ed25519"])

    assert token.header["typ"] == "at+jwt"
    assert set(token.claims) == ALL_CLAIMS
    assert token.claims["exp"] - token.claims["iat"] == 15 * 60


async def test_the_answer_is_that_of_rfc_6749(anonymous: AsyncClient) -> None:
    await register(anonymous)
    response = await by_password(anonymous)
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert set(body) == {"access_token", "token_type", "expires_in", "refresh_token", "scope"}
    assert body["token_type"] == "bearer"
    assert body["expires_in"] == 900
    assert "users:self" in body["scope"].split()
    assert "users:admin" not in body["scope"].split()


async def test_errors_are_those_of_rfc_6749(anonymous: AsyncClient) -> None:
    for form, error in [
        ({}, "invalid_request"),
        ({"grant_type": "password", "username": "ada@example.com"}, "invalid_request"),
        ({"grant_type": "refresh_token"}, "invalid_request"),
        ({"grant_type": "implicit"}, "unsupported_grant_type"),
        (
            {"grant_type": "password", "username": "a\0@example.com", "password": "x" * 8},
            "invalid_request",
        ),
        (
            {"grant_type": "password", "username": "a" * 321, "password": "x" * 8},
            "invalid_request",
        ),
        ({"grant_type": "refresh_token", "refresh_token": "x" * 1_001}, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "nonsense"}, "invalid_grant"),
        (
            {"grant_type": "password", "username": "a@example.com", "password": "x" * 8},
            "invalid_grant",
        ),
    ]:
        response = await anonymous.post("/auth/token", data=form)
        assert response.status_code == 400
        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"] == "no-store"
        assert set(response.json()) == {"error", "error_description"}
        assert response.json()["error"] == error


async def test_a_client_may_ask_for_less_and_a_refresh_does_not_widen_it(
    anonymous: AsyncClient,
) -> None:
    await register(anonymous)
    narrow = await by_password(anonymous, scope="users:self")
    assert narrow.json()["scope"] == "users:self"
    refreshed = await by_refresh(anonymous, tokens_of(narrow).refresh)
    assert refreshed.json()["scope"] == "users:self"
    wider = await by_refresh(
        anonymous, tokens_of(refreshed).refresh, scope="users:self users:admin"
    )
    assert wider.json()["error"] == "invalid_scope"
    beyond = await by_password(anonymous, scope="users:admin")
    assert beyond.json()["error"] == "invalid_scope"


async def test_a_scope_that_does_not_exist_is_refused_by_both_grants(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    """Of a session with all scopes, too, which goes on (RFC 6749, section 5.2)."""
    for scope in ("nothing", "users:self nothing", "users:admin"):
        for answer in (
            await by_password(anonymous, scope=scope),
            await by_refresh(anonymous, signed_in.refresh, scope=scope),
        ):
            assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope")
    narrow = await by_refresh(anonymous, signed_in.refresh, scope="users:self")
    assert narrow.json()["scope"] == "users:self"


async def test_a_token_expires(anonymous: AsyncClient, signed_in: Tokens) -> None:
    assert await status_with(anonymous, signed_in.header) == 200
    with time_machine.travel(timedelta(minutes=16), tick=True):
        expired = await anonymous.get("/users/me", headers=signed_in.header)
    assert expired.status_code == 401
    assert expired.json()["detail"] == "Invalid token"
    assert expired.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def rotate(command: Command, *options: str) -> None:
    done = await command("rotate-keys", *options)
    assert done.exit_code == 0, done.output


async def key_ids(client: AsyncClient) -> set[str]:
    published = await client.get("/.well-known/jwks.json")
    return {key["kid"] for key in published.json()["keys"]}


async def test_a_new_key_is_published_before_it_signs_and_the_old_one_goes_on_verifying(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, command: Command
) -> None:
    (old,) = await key_ids(anonymous)
    revocation_list = state_of(app).revocation_list
    await eventually(lambda: revocation_list.fresh, "the first poll")
    await rotate(command)
    await revocation_list.sync()

    assert len(await key_ids(anonymous)) == 2
    again = tokens_of(await by_refresh(anonymous, signed_in.refresh))
    assert key_of(again) == old
    with time_machine.travel(timedelta(minutes=6), tick=True):
        later = tokens_of(await by_refresh(anonymous, again.refresh))
        assert key_of(later) != old
        for tokens in (signed_in, later):
            assert await status_with(anonymous, tokens.header) == 200


def key_of(tokens: Tokens) -> str:
    """The id of the key that signed the access token."""
    return str(extract_compact(tokens.access.encode()).headers()["kid"])


async def test_a_leaked_key_is_worth_nothing_at_once(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, command: Command
) -> None:
    assert await status_with(anonymous, signed_in.header) == 200
    revocation_list = state_of(app).revocation_list
    await eventually(lambda: revocation_list.fresh, "the first poll")
    await rotate(command, "--revoke")
    await revocation_list.sync()

    assert await status_with(anonymous, signed_in.header) == 401
    again = tokens_of(await by_refresh(anonymous, signed_in.refresh))
    assert await status_with(anonymous, again.header) == 200


async def test_a_key_that_a_process_has_not_heard_of_is_looked_up(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    """A token may arrive before the process has loaded its key."""
    keyring = state_of(app).keyring
    for known in (frozenset[str](), frozenset({"another"})):
        keyring.reader, keyring.ids = type(keyring.reader)(keyring.issuer, {}), known
        assert await status_with(anonymous, signed_in.header) == 200


async def test_private_keys_are_sealed(execute: Execute, signed_in: Tokens) -> None:
    (row,) = await execute("SELECT * FROM signing_keys")
    assert b'"d"' not in row["sealed_private_jwk"]
    assert '"d"' not in row["public_jwk"]


async def test_another_secret_key_signs_with_a_key_of_its_own(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    await execute("UPDATE signing_keys SET sealed_private_jwk = 'sealed under another key'")
    await state_of(app).keyring.load()
    again = tokens_of(await by_refresh(anonymous, signed_in.refresh))
    assert key_of(again) != key_of(signed_in)
    async with connect(app) as client:
        for tokens in (signed_in, again):
            assert await status_with(client, tokens.header) == 200
