"""Attacks on tokens over HTTP: forged, altered, misused and stolen ones."""

import asyncio
import base64
import hmac
import json
import time
from contextlib import AsyncExitStack
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from features.users.opaque_tokens import API_KEY, REFRESH_TOKEN, new_token
from features.users.state import state_of
from features.users.tests.conftest import (
    EMAIL,
    Execute,
    MailedToken,
    Tokens,
    by_password,
    by_refresh,
    register,
    status_with,
    tokens_of,
)
from features.users.tests.races import open_transaction
from shared.db.locks import advisory_lock
from tests.kit import SignUp, eventually, within

Claims = dict[str, Any]


def decode_token(token: str) -> tuple[Claims, Claims]:
    """Returns header and claims without verification, as an attacker can read them."""
    header, claims, _ = token.split(".")
    return _decode_segment(header), _decode_segment(claims)


def _decode_segment(segment: str) -> Claims:
    opened: Claims = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    return opened


def encode_segment(part: Claims) -> str:
    return _base64url(json.dumps(part).encode())


def _base64url(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


async def assert_refused(client: AsyncClient, credential: str) -> None:
    for header in ({"Authorization": f"Bearer {credential}"}, {"X-API-Key": credential}):
        response = await client.get("/users/me", headers=header)
        assert response.status_code == 401, response.text
        assert response.json()["detail"] == "Invalid token"
        assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_alg_none(anonymous: AsyncClient, signed_in: Tokens) -> None:
    header, claims = decode_token(signed_in.access)
    for algorithm in ("none", "None", "NONE", "nOnE"):
        forged = f"{encode_segment(header | {'alg': algorithm})}.{encode_segment(claims)}."
        await assert_refused(anonymous, forged)


async def test_the_public_key_as_an_hmac_secret(anonymous: AsyncClient, signed_in: Tokens) -> None:
    """Algorithm confusion (HS/RS), with every encoding of the public key."""
    header, claims = decode_token(signed_in.access)
    (published,) = (await anonymous.get("/.well-known/jwks.json")).json()["keys"]
    public = OKPKey.import_key(published)
    secrets = [
        public.as_pem(private=False),
        public.as_der(private=False),
        json.dumps(published).encode(),
        published["x"].encode(),
        base64.urlsafe_b64decode(published["x"] + "="),
    ]
    for secret in secrets:
        for algorithm in ("sha256", "sha512"):
            named = header | {"alg": f"HS{algorithm[3:]}"}
            signing_input = f"{encode_segment(named)}.{encode_segment(claims)}"
            signature = hmac.digest(secret, signing_input.encode(), algorithm)
            await assert_refused(anonymous, f"{signing_input}.{_base64url(signature)}")


@pytest.mark.parametrize("algorithm", ["Ed25519", "ES256", "RS256"])
async def test_a_key_of_the_attackers_own(
    anonymous: AsyncClient, signed_in: Tokens, algorithm: str
) -> None:
    """With our key's id, with its own, without one, or in the header (`jwk`, `jku`, `x5u`)."""
    header, claims = decode_token(signed_in.access)
    key: OKPKey | ECKey | RSAKey
    if algorithm == "Ed25519":
        key = OKPKey.generate_key("Ed25519", auto_kid=True)
    elif algorithm == "ES256":
        key = ECKey.generate_key("P-256", auto_kid=True)
    else:
        key = RSAKey.generate_key(2048, auto_kid=True)
    evil = "https://evil.example.com/jwks.json"
    for more in (
        {},
        {"kid": key.kid},
        {"jwk": key.as_dict(private=False)},
        {"jku": evil, "kid": key.kid},
        {"x5u": evil},
    ):
        forged_header = header | {"alg": algorithm} | more
        await assert_refused(anonymous, jwt.encode(forged_header, claims, key, [algorithm]))
    without = {name: value for name, value in header.items() if name != "kid"}
    await assert_refused(
        anonymous, jwt.encode(without | {"alg": algorithm}, claims, key, [algorithm])
    )


KIDS: list[object] = [
    "../../../../dev/null",
    "/etc/passwd",
    "' OR '1'='1",
    "'; DROP TABLE signing_keys; --",
    "http://evil.example.com/key",
    "\x00",
    "",
    None,
    7,
    ["a"],
    {"a": "b"},
]


async def test_kid_injection(
    anonymous: AsyncClient, signed_in: Tokens, subtests: pytest.Subtests
) -> None:
    for kid in KIDS:
        with subtests.test(kid=kid):
            header, claims = decode_token(signed_in.access)
            signature = signed_in.access[-86:]
            forged_header = encode_segment(header | {"kid": kid})
            forged = f"{forged_header}.{encode_segment(claims)}.{signature}"
            await assert_refused(anonymous, forged)


async def sign(app: FastAPI, header: Claims, claims: Claims) -> str:
    """Returns a token with these claims and a valid signature."""
    keyring = state_of(app).keyring
    key = keyring._active_key(keyring._private_keys)
    assert key is not None
    return jwt.encode(header, claims, key, algorithms=["Ed25519"], default_type=None)


WRONG_CLAIMS: list[Claims] = [
    {"exp": int(time.time()) - 60},
    {"exp": None},
    {"exp": "soon"},
    {"exp": 1e400},
    {"nbf": int(time.time()) + 3600},
    {"iat": int(time.time()) + 3600},
    {"aud": "another"},
    {"aud": ["another", "third"]},
    {"aud": None},
    {"iss": "https://evil.example.com"},
    {"iss": None},
    {"sub": None},
    {"sub": "not a uuid"},
    {"sid": None},
    {"sid": 7},
    {"scope": None},
    {"scope": ["users:admin"]},
    {"jti": None},
]


async def test_wrong_claims_under_a_true_signature(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, subtests: pytest.Subtests
) -> None:
    """Expired, not yet valid, wrong audience, wrong issuer, or a missing claim."""
    for change in WRONG_CLAIMS:
        with subtests.test(change=change):
            header, claims = decode_token(signed_in.access)
            forged = {name: value for name, value in (claims | change).items() if value is not None}
            await assert_refused(anonymous, await sign(app, header, forged))


OTHER_TYPES: list[str | None] = ["JWT", "id_token", "rt+jwt", None, ""]


async def test_another_type_under_a_true_signature(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, subtests: pytest.Subtests
) -> None:
    for type_ in OTHER_TYPES:
        with subtests.test(type_=type_):
            header, claims = decode_token(signed_in.access)
            del header["typ"]
            if type_ is not None:
                header["typ"] = type_
            await assert_refused(anonymous, await sign(app, header, claims))


async def test_a_little_clock_skew_is_allowed(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens
) -> None:
    header, claims = decode_token(signed_in.access)
    soon = int(time.time()) + 3
    early = await sign(app, header, claims | {"iat": soon, "nbf": soon})
    answer = await anonymous.get("/users/me", headers={"Authorization": f"Bearer {early}"})
    assert answer.status_code == 200


async def test_a_tampered_token(anonymous: AsyncClient, signed_in: Tokens, sign_up: SignUp) -> None:
    header, claims, signature = signed_in.access.split(".")
    stranger = await sign_up()
    victim = (await stranger.get("/users/me")).json()["id"]
    for change in ({"sub": victim}, {"scope": "users:self users:admin"}, {"exp": 2**40}):
        forged = encode_segment(_decode_segment(claims) | change)
        await assert_refused(anonymous, f"{header}.{forged}.{signature}")
    flipped = signature[:-5] + ("A" if signature[-5] != "A" else "B") + signature[-4:]
    await assert_refused(anonymous, f"{header}.{claims}.{flipped}")


async def test_a_truncated_token(anonymous: AsyncClient, signed_in: Tokens) -> None:
    token = signed_in.access
    for cut in (token[:-1], token[: len(token) // 2], token.rsplit(".", 1)[0], token[:1], "..."):
        await assert_refused(anonymous, cut)


async def test_a_token_of_a_megabyte(anonymous: AsyncClient, signed_in: Tokens) -> None:
    for huge in ("x" * 1_000_000, signed_in.access + "x" * 1_000_000, "." * 1_000_000):
        await assert_refused(anonymous, huge)
    await assert_refused(anonymous, f"{API_KEY}_" + "x" * 1_000_000)


async def test_a_refresh_token_is_no_access_token(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    await assert_refused(anonymous, signed_in.refresh)


async def test_an_access_token_is_no_refresh_token(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    answer = await by_refresh(anonymous, signed_in.access)
    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_grant"


async def test_opaque_tokens_that_were_never_issued(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    await assert_refused(anonymous, new_token(API_KEY))
    mistyped = new_token(API_KEY)[:-1]
    await assert_refused(anonymous, mistyped)
    guesses = [
        new_token(REFRESH_TOKEN),
        signed_in.refresh[:-1],
        signed_in.refresh.replace("tsr_", "tsk_"),
        "tsr_",
        "tsr_" + "\u2603" * 10,
    ]
    for guess in guesses:
        answer = await by_refresh(anonymous, guess)
        assert answer.json()["error"] == "invalid_grant"
    tokens_of(await by_refresh(anonymous, signed_in.refresh))


async def test_a_made_up_refresh_token_that_names_a_session_ends_nothing(
    anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    """By what others may have read: the ids in an access token. That would be a false replay."""
    _, claims = decode_token(signed_in.access)
    for known in (claims["sid"], claims["sub"], claims["jti"]):
        made_up = await by_refresh(anonymous, new_token(REFRESH_TOKEN, UUID(known)))
        assert (made_up.status_code, made_up.json()["error"]) == (400, "invalid_grant")
    assert await status_with(anonymous, signed_in.header) == 200
    assert not await execute("SELECT FROM account_events WHERE kind = 'refresh_replayed'")
    tokens_of(await by_refresh(anonymous, signed_in.refresh))


async def test_a_stolen_access_token_after_logout(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    await anonymous.post("/auth/logout", headers=signed_in.header)
    await assert_refused(anonymous, signed_in.access)


async def test_a_stolen_key_after_revocation(client: AsyncClient, anonymous: AsyncClient) -> None:
    body = {"name": "stolen", "scopes": ["users:self"]}
    created = (await client.post("/users/me/api-keys", json=body)).json()
    header = {"X-API-Key": created["key"]}
    assert (await anonymous.get("/users/me", headers=header)).status_code == 200
    await client.delete(f"/users/me/api-keys/{created['id']}")
    await assert_refused(anonymous, created["key"])


async def test_session_fixation(anonymous: AsyncClient, signed_in: Tokens) -> None:
    """Values that a client sends with a sign-in do not become part of the new session."""
    fixed = decode_token(signed_in.access)[1]["sid"]
    anonymous.cookies.set("session", fixed)
    answer = await by_password(
        anonymous, session_id=fixed, sid=fixed, refresh_token=signed_in.refresh
    )
    again = tokens_of(answer)
    assert decode_token(again.access)[1]["sid"] != fixed
    assert again.refresh != signed_in.refresh
    await anonymous.post("/auth/logout", headers=signed_in.header)
    tokens_of(await by_refresh(anonymous, again.refresh))


async def test_a_database_that_leaked_opens_nothing(
    anonymous: AsyncClient, execute: Execute, mailed_token: MailedToken
) -> None:
    """No column holds a value that is accepted as a credential."""
    await register(anonymous)
    tokens = tokens_of(await by_password(anonymous))
    key = {"name": "leaked", "scopes": ["users:self"]}
    await anonymous.post("/users/me/api-keys", json=key, headers=tokens.header)
    await by_refresh(anonymous, tokens.refresh)
    await anonymous.post("/auth/password/forgot", json={"email": EMAIL})
    mailed = {await mailed_token(EMAIL, "confirm"), await mailed_token(EMAIL, "reset")}
    tables = await execute("SELECT relname FROM pg_stat_user_tables")
    assert "outgoing_mail" in {row["relname"] for row in tables}
    for (table,) in tables:
        for row in await execute(f"SELECT * FROM {table}"):
            for value in row.values():
                assert not any(token in str(value) for token in mailed), table
                leaked = value.hex() if isinstance(value, bytes) else str(value)
                if not leaked.isascii() or not leaked.isprintable() or not leaked.strip():
                    continue
                header = {"Authorization": f"Bearer {leaked}"}
                assert (await anonymous.get("/users/me", headers=header)).status_code == 401
                assert (await by_refresh(anonymous, leaked)).status_code == 400


async def test_unknown_keys_are_refused_in_time_whatever_others_wait_for(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, database_url: str
) -> None:
    """Neither for the lock of the keys, nor for a connection of a pool; and they share polls."""
    header, payload, signature = signed_in.access.split(".")
    unknown = encode_segment(_decode_segment(header) | {"kid": "leaked"})
    forged = {"Authorization": f"Bearer {unknown}.{payload}.{signature}"}
    state = state_of(app)
    await eventually(lambda: state.revocation_list.fresh, "the first poll")
    polls = 0

    async def count(*_: object) -> None:
        nonlocal polls
        polls += 1

    key = advisory_lock("users.signing_keys")
    async with (
        open_transaction(database_url, f"SELECT pg_advisory_xact_lock({key})"),
        AsyncExitStack() as held,
    ):
        for _ in range(app.state.settings.database_pool_size):
            await held.enter_async_context(state.database.transaction())
            await held.enter_async_context(state.database.primary.connection())
        with patch.object(state.revocation_list, "on_key_ids", count):
            async with within(10, "the answers to 100 tokens"):
                sent = (status_with(anonymous, forged) for _ in range(100))
                assert set(await asyncio.gather(*sent)) == {401}
    assert polls < 50
