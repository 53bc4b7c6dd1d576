"""Single sign-on, end to end against a real OpenID provider on loopback."""

import asyncio
import hmac
import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import oidc_provider_mock
import pytest
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from fastapi import FastAPI
from httpx import AsyncClient, Response
from joserfc import jwt
from joserfc.jwk import RSAKey
from pydantic import HttpUrl, SecretStr
from werkzeug.serving import make_server
from werkzeug.wrappers import Response as ProviderResponse

from features.users.settings import UsersSettings
from features.users.tests.conftest import (
    EMAIL,
    Execute,
    MailedToken,
    SentMail,
    Tokens,
    by_password,
    by_refresh,
    register,
    status_with,
    tokens_of,
)
from features.users.tests.races import LOCK_USER, Race, open_transaction
from features.users.tests.test_attacks_on_tokens import decode_token, encode_segment
from shared.settings import ConfigurationError, Settings, load_feature_settings
from tests.kit import SECRET_KEY, connect, free_port

ADA = {"email": EMAIL, "email_verified": True, "name": "Ada Lovelace"}
CALLBACK = "/auth/oidc/mock/callback"


Forge = Callable[["IdentityProvider", dict[str, Any]], str]


class IdentityProvider:
    """A mock OpenID provider that records token requests and can forge ID tokens."""

    def __init__(self) -> None:
        self.url = f"http://localhost:{free_port()}"
        self.token_requests: list[dict[str, list[str]]] = []
        self.forge: Forge | None = None
        self.post_only = False
        self.replaced: dict[str, object] = {}  # the documents at these paths
        self.key = RSAKey.generate_key(2048, auto_kid=True)  # published while `forge` is set
        self._app = oidc_provider_mock.app(require_nonce=True)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/oauth2/token":
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            self.token_requests.append(parse_qs(body.decode()))
            environ["wsgi.input"] = BytesIO(body)
            if self.post_only and "HTTP_AUTHORIZATION" in environ:
                start_response("401 Unauthorized", [("Content-Type", "application/json")])
                return [b'{"error": "invalid_client"}']
        response = ProviderResponse.from_app(self._app, environ)
        self._alter(environ["PATH_INFO"], response)
        return response(environ, start_response)

    def _alter(self, path: str, response: ProviderResponse) -> None:
        if path == "/jwks" and self.forge:
            response.set_data(json.dumps({"keys": [self.key.as_dict(private=False)]}))
        elif path == "/.well-known/openid-configuration":
            algorithms = ["RS256", "HS256", "none"]  # offered, but HS256 and none must be refused
            methods = ["client_secret_post" if self.post_only else "client_secret_basic"]
            more = {
                "id_token_signing_alg_values_supported": algorithms,
                "token_endpoint_auth_methods_supported": methods,
            }
            response.set_data(json.dumps(response.get_json() | more))
        elif path == "/oauth2/token" and self.forge:
            answer = response.get_json()
            answer["id_token"] = self.forge(self, decode_token(answer["id_token"])[1])
            response.set_data(json.dumps(answer))
        if path in self.replaced:
            response.status_code = 200
            response.set_data(json.dumps(self.replaced[path]))

    async def sign_in(self, url: str, subject: str, **claims: Any) -> str:
        """Signs a user in, and returns the URL that the browser is redirected to."""
        async with httpx.AsyncClient(timeout=30) as browser:
            stored = await browser.put(f"{self.url}/users/{subject}", json=claims)
            assert stored.status_code == 204
            answer = await browser.post(url, data={"sub": subject})
        assert answer.status_code == 302, answer.text
        return answer.headers["location"].removeprefix("http://testserver")


@pytest.fixture(scope="module")
def running_provider() -> Iterator[IdentityProvider]:
    running = IdentityProvider()
    server = make_server("localhost", urlsplit(running.url).port or 0, running, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield running
    server.shutdown()
    thread.join(30)
    assert not thread.is_alive(), "the provider did not stop within 30 s"
    server.server_close()


@pytest.fixture
def provider(running_provider: IdentityProvider) -> IdentityProvider:
    running_provider.token_requests.clear()
    running_provider.forge, running_provider.post_only = None, False
    running_provider.replaced.clear()
    return running_provider


@pytest.fixture
def settings(
    settings: Settings, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    client = {"client_id": "tessera", "client_secret": "hush"}
    providers = {
        "mock": {"issuer": provider.url, **client},
        "away": {"issuer": "http://127.0.0.1:9", **client},
        "other": {"issuer": f"{provider.url}/tenant", **client},
        "bound": {"issuer": provider.url, **client, "email_domains": ["Example.com"]},
    }
    monkeypatch.setenv("APP_OIDC_PROVIDERS", json.dumps(providers))
    return settings.model_copy(update={"public_url": "http://testserver"})


async def begin(browser: AsyncClient, name: str = "mock", **query: Any) -> str:
    answer = await browser.get(f"/auth/oidc/{name}/login", params=query)
    assert answer.status_code == 302, answer.text
    return str(answer.headers["location"])


async def sign_in(browser: AsyncClient, provider: IdentityProvider, **claims: Any) -> Response:
    back = await provider.sign_in(await begin(browser), "ada", **(claims or ADA))
    return await browser.get(back)


async def test_somebody_new_gets_an_account(
    anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    tokens = tokens_of(await sign_in(anonymous, provider))
    me = (await anonymous.get("/users/me", headers=tokens.header)).json()
    assert (me["email"], me["name"], me["email_verified"]) == (EMAIL, "Ada Lovelace", True)
    tokens_of(await by_refresh(anonymous, tokens.refresh))


async def test_somebody_known_gets_the_same_account_whatever_their_email_is_now(
    anonymous: AsyncClient, provider: IdentityProvider, execute: Execute
) -> None:
    tokens_of(await sign_in(anonymous, provider))
    tokens_of(await sign_in(anonymous, provider, email="new@example.com", email_verified=False))
    assert len(await execute("SELECT 1 FROM users")) == 1


async def test_the_request_has_state_nonce_and_pkce_and_the_code_its_verifier(
    anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    url = await begin(anonymous)
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert asked["response_type"] == "code"
    assert asked["code_challenge_method"] == "S256"
    assert asked["redirect_uri"] == f"http://testserver{CALLBACK}"
    assert len(asked["state"]) >= 43
    assert len(asked["nonce"]) >= 43
    tokens_of(await anonymous.get(await provider.sign_in(url, "ada", **ADA)))
    (exchanged,) = provider.token_requests
    challenge = create_s256_code_challenge(exchanged["code_verifier"][0])
    assert challenge == asked["code_challenge"]


async def test_two_tabs_work(anonymous: AsyncClient, provider: IdentityProvider) -> None:
    first, second = await begin(anonymous), await begin(anonymous)
    assert first != second
    for url in (first, second):
        tokens_of(await anonymous.get(await provider.sign_in(url, "ada", **ADA)))


async def test_the_cookie_of_an_attempt_is_for_the_callback_alone(
    anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    answer = await anonymous.get("/auth/oidc/mock/login")
    cookie = answer.headers["set-cookie"]
    for attribute in ("HttpOnly", "Path=/auth/oidc/", "SameSite=lax", "Max-Age=600"):
        assert attribute in cookie
    assert answer.headers["cache-control"] == "no-store"
    back = await provider.sign_in(answer.headers["location"], "ada", **ADA)
    assert "Max-Age=0" in (await anonymous.get(back)).headers["set-cookie"]


async def test_an_answer_in_another_browser_is_refused(
    app: FastAPI, anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    """CSRF on the callback: the victim's browser is redirected with the attacker's code."""
    back = await provider.sign_in(await begin(anonymous), "attacker", **ADA)
    async with connect(app) as victim:
        await begin(victim)
        refused = await victim.get(back)
    assert refused.status_code == 400
    assert "did not begin in this browser" in refused.json()["detail"]
    assert provider.token_requests == []


async def test_the_state_of_one_attempt_does_not_fit_the_cookie_of_another(
    anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    back = await provider.sign_in(await begin(anonymous), "ada", **ADA)
    (name,) = anonymous.cookies
    forged = back.replace(name.removeprefix("oidc_"), "x" * 43)
    anonymous.cookies.set(f"oidc_{'x' * 43}", anonymous.cookies[name], path="/auth/oidc/")
    assert (await anonymous.get(forged)).status_code == 400


async def test_a_code_is_good_once(anonymous: AsyncClient, provider: IdentityProvider) -> None:
    back = await provider.sign_in(await begin(anonymous), "ada", **ADA)
    kept = dict(anonymous.cookies)
    tokens_of(await anonymous.get(back))
    anonymous.cookies.update(kept)
    assert (await anonymous.get(back)).status_code == 400


def resigned(provider: IdentityProvider, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS256", "kid": provider.key.kid}, claims, provider.key)


def changed(**change: Any) -> Forge:
    """Changes or removes claims (None), and signs the token with the published key."""

    def forge(provider: IdentityProvider, claims: dict[str, Any]) -> str:
        forged = {name: value for name, value in (claims | change).items() if value is not None}
        return resigned(provider, forged)

    return forge


def unsigned(_: IdentityProvider, claims: dict[str, Any]) -> str:
    return f"{encode_segment({'alg': 'none'})}.{encode_segment(claims)}."


def by_public_key(provider: IdentityProvider, claims: dict[str, Any]) -> str:
    return by_secret(provider, claims, provider.key.as_pem(private=False))


def by_secret(provider: IdentityProvider, claims: dict[str, Any], secret: bytes = b"hush") -> str:
    header = {"alg": "HS256", "kid": provider.key.kid}
    signing_input = f"{encode_segment(header)}.{encode_segment(claims)}"
    signature = hmac.digest(secret, signing_input.encode(), "sha256")
    return f"{signing_input}.{urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def by_another_key(provider: IdentityProvider, claims: dict[str, Any]) -> str:
    key = RSAKey.generate_key(2048)
    return jwt.encode({"alg": "RS256", "kid": provider.key.kid}, claims, key)


async def test_a_token_that_is_signed_again(
    anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    """Control: signing again is not the reason why the forged tokens below are refused."""
    provider.forge = resigned
    tokens_of(await sign_in(anonymous, provider))


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(changed(aud="another client"), id="another audience"),
        pytest.param(changed(aud=None), id="no audience"),
        pytest.param(changed(iss="https://evil.example.com"), id="another issuer"),
        pytest.param(changed(iss=None), id="no issuer"),
        pytest.param(changed(exp=1_000_000_000), id="expired"),
        pytest.param(changed(exp=None), id="no end"),
        pytest.param(changed(iat=4_000_000_000), id="not yet issued"),
        pytest.param(changed(nonce="x" * 43), id="another nonce"),
        pytest.param(changed(nonce=None), id="no nonce"),
        pytest.param(changed(sub=None), id="nobody"),
        unsigned,
        by_public_key,
        by_secret,
        by_another_key,
    ],
)
async def test_a_forged_id_token(
    anonymous: AsyncClient, provider: IdentityProvider, execute: Execute, forge: Forge
) -> None:
    provider.forge = forge
    refused = await sign_in(anonymous, provider)
    assert refused.status_code == 400, refused.text
    assert "answer is not valid" in refused.json()["detail"]
    assert await execute("SELECT 1 FROM users") == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sub": ""}, "sub: String should have at least 1 character"),
        ({"sub": 7}, "please begin again"),
        ({"sub": "x" * 256}, "sub: String should have at most 255 characters"),
        ({"sub": "a\0da"}, "sub: String should not contain NUL"),
        ({"name": ["Ada"]}, "name: Input should be a valid string"),
        ({"name": {"first": "Ada"}}, "name: Input should be a valid string"),
        ({"name": "A\0da"}, "name: String should not contain NUL"),
        ({"email": 7}, "email: Input should be a valid string"),
        ({"email": [EMAIL]}, "email: Input should be a valid string"),
        ({"exp": "soon"}, "please begin again"),
        ({"iat": {}}, "please begin again"),
        ({"aud": 7}, "please begin again"),
        ({"aud": [["tessera"]]}, "please begin again"),
        ({"nonce": 7}, "please begin again"),
        ({"at_hash": 7}, "please begin again"),
        ({"auth_time": "now"}, "please begin again"),
    ],
)
async def test_a_malformed_id_token_is_refused(
    anonymous: AsyncClient,
    provider: IdentityProvider,
    execute: Execute,
    change: dict[str, object],
    told: str,
) -> None:
    """The provider itself has signed it."""
    provider.forge = changed(**ADA | change)
    refused = await sign_in(anonymous, provider)
    assert refused.status_code == 400, refused.text
    assert f"answer is not valid: {told}" in refused.json()["detail"]
    assert await execute("SELECT 1 FROM users") == []


@pytest.mark.parametrize(
    "email", ["", "ada", "ada@localhost", "ada@example.com, eve@example.com", "@", "a\n@b.com"]
)
async def test_an_email_that_is_no_address_makes_no_account(
    anonymous: AsyncClient, provider: IdentityProvider, execute: Execute, email: str
) -> None:
    """A linked account signs in even if the provider has not verified the address."""
    provider.forge = changed(**ADA | {"email": email})
    refused = await sign_in(anonymous, provider)
    assert refused.status_code == 403, refused.text
    assert "it is not valid" in refused.json()["detail"]
    assert await execute("SELECT 1 FROM users") == []
    provider.forge = changed(**ADA)
    tokens_of(await sign_in(anonymous, provider))
    provider.forge = changed(**ADA | {"email": email})
    tokens_of(await sign_in(anonymous, provider))


@pytest.mark.parametrize(
    ("userinfo", "status"),
    [
        ({"email": EMAIL, "email_verified": True}, 200),
        ({"email": EMAIL}, 403),  # what the ID token has verified is another address, or none
        ({"email_verified": True}, 403),
        ({"email": EMAIL, "email_verified": "true"}, 403),
        ({"email": EMAIL, "email_verified": True, "name": 7}, 400),
        ({"email": EMAIL, "email_verified": True, "sub": "eve"}, 400),
        ({"email": EMAIL, "email_verified": True, "sub": None}, 400),
        ([], 400),
        ("ada", 400),
        (None, 400),
    ],
)
async def test_an_address_is_verified_by_the_document_that_names_it(
    anonymous: AsyncClient, provider: IdentityProvider, userinfo: object, status: int
) -> None:
    provider.forge = changed(email=None, email_verified=True)
    if isinstance(userinfo, dict):
        userinfo = {"sub": "ada"} | userinfo
    provider.replaced["/userinfo"] = userinfo
    answer = await sign_in(anonymous, provider)
    assert answer.status_code == status, answer.text


async def test_userinfo_does_not_verify_the_address_of_the_id_token(
    anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    provider.forge = changed(email=EMAIL, email_verified=None)
    provider.replaced["/userinfo"] = {"sub": "ada", "email_verified": True, "email": "a@b.com"}
    assert (await sign_in(anonymous, provider)).status_code == 403


@pytest.mark.parametrize(
    "answer", [[], "token", None, {}, {"id_token": 7}, {"id_token": "a.b"}, {"access_token": "x"}]
)
async def test_a_malformed_answer_of_the_token_endpoint_is_refused(
    anonymous: AsyncClient, provider: IdentityProvider, answer: object
) -> None:
    provider.replaced["/oauth2/token"] = answer
    refused = await sign_in(anonymous, provider)
    assert refused.status_code == 400, refused.text
    assert "answer is not valid" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/.well-known/openid-configuration", []),
        ("/.well-known/openid-configuration", None),
        ("/.well-known/openid-configuration", {"issuer": 7}),
        ("/.well-known/openid-configuration", {"authorization_endpoint": None}),
        ("/.well-known/openid-configuration", {"token_endpoint": "nowhere"}),
        ("/.well-known/openid-configuration", {"jwks_uri": ["x"]}),
        ("/.well-known/openid-configuration", {"id_token_signing_alg_values_supported": "RS256"}),
        ("/jwks", []),
        ("/jwks", {"keys": 7}),
        ("/jwks", {"keys": ["x"]}),
        ("/jwks", {"keys": [{"kty": "?"}]}),
    ],
)
async def test_a_malformed_discovery_is_no_provider(
    anonymous: AsyncClient, provider: IdentityProvider, path: str, document: object
) -> None:
    if isinstance(document, dict) and path != "/jwks":
        async with httpx.AsyncClient(timeout=30) as other:
            document = (await other.get(f"{provider.url}{path}")).json() | document
    provider.replaced[path] = document
    answer = await anonymous.get("/auth/oidc/mock/login")
    assert answer.status_code == 503, answer.text
    assert "cannot be used" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        (ADA, 200),
        (ADA | {"email": "Ada@EXAMPLE.com"}, 200),
        (ADA | {"email": "ada@evil.example.com"}, 403),
        (ADA | {"email": "ada@example.org"}, 403),
        (ADA | {"email": "ada@example.com@example.org"}, 403),
        (ADA | {"email_verified": False}, 403),
        ({}, 403),
    ],
)
async def test_a_provider_may_be_bound_to_domains(
    anonymous: AsyncClient, provider: IdentityProvider, claims: dict[str, Any], status: int
) -> None:
    """That includes linked accounts: a person who leaves the domain loses the address."""
    tokens_of(await sign_in(anonymous, provider, **ADA))
    back = await provider.sign_in(await begin(anonymous, "bound"), "ada", **claims)
    answer = await anonymous.get(back)
    assert answer.status_code == status, answer.text
    if status == 403:
        assert "verified addresses of example.com alone" in answer.json()["detail"]


async def test_a_domain_of_a_provider_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = {"issuer": "https://id.example.com", "client_id": "a", "client_secret": "b"}
    bound = {"mock": provider | {"email_domains": ["@example.com"]}}
    monkeypatch.setenv("APP_OIDC_PROVIDERS", json.dumps(bound))
    kernel = Settings(env="test", database_url="postgresql://host/db")
    with pytest.raises(ConfigurationError, match=r"must be a domain like example\.com"):
        load_feature_settings(UsersSettings, kernel)


async def test_a_provider_that_takes_the_secret_in_the_form_alone(
    anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    provider.post_only = True
    tokens_of(await sign_in(anonymous, provider))
    assert provider.token_requests[0]["client_secret"] == ["hush"]


async def test_a_code_of_another_attempt_has_another_nonce(
    anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    """Code injection: the code of one attempt in the callback of another."""
    first, second = await begin(anonymous), await begin(anonymous)
    stolen = await provider.sign_in(first, "victim", **ADA)
    mine = await provider.sign_in(second, "ada", **ADA)
    code = parse_qs(urlsplit(stolen).query)["code"][0]
    state = parse_qs(urlsplit(mine).query)["state"][0]
    refused = await anonymous.get(CALLBACK, params={"code": code, "state": state})
    assert refused.status_code == 400
    assert "answer is not valid" in refused.json()["detail"]


async def test_an_unverified_email_is_not_believed(
    anonymous: AsyncClient, provider: IdentityProvider, signed_in: Tokens
) -> None:
    """Account takeover: at this provider a user may claim any address."""
    for claims in ({"email": EMAIL}, {"email": EMAIL, "email_verified": "true"}):
        refused = await sign_in(anonymous, provider, **claims)
        assert refused.status_code == 403
        assert "not verified your email" in refused.json()["detail"]


async def test_an_account_with_a_verified_address_is_linked_by_it(
    anonymous: AsyncClient,
    provider: IdentityProvider,
    signed_in: Tokens,
    mailed_token: MailedToken,
) -> None:
    token = await mailed_token(EMAIL, "confirm")
    await anonymous.post("/auth/email/verify", json={"token": token})
    tokens = tokens_of(await sign_in(anonymous, provider))
    mine = (await anonymous.get("/users/me", headers=signed_in.header)).json()
    assert (await anonymous.get("/users/me", headers=tokens.header)).json() == mine
    tokens_of(await by_password(anonymous))


async def test_an_account_that_waits_for_its_victim_is_not_handed_over(
    anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    """Pre-hijacking: the attacker registers the victim's address in advance."""
    await register(anonymous)
    refused = await sign_in(anonymous, provider)
    assert refused.status_code == 409
    assert "never verified" in refused.json()["detail"]


async def begin_link(browser: AsyncClient, tokens: Tokens) -> str:
    answer = await browser.post("/users/me/identities/mock", headers=tokens.header)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["authorization_url"])


async def test_a_signed_in_account_links_an_identity_and_unlinks_it(
    anonymous: AsyncClient, provider: IdentityProvider, signed_in: Tokens, sent_mail: SentMail
) -> None:
    url = await begin_link(anonymous, signed_in)
    back = await provider.sign_in(url, "ada", email="ada@work.example.com", email_verified=True)
    linked = await anonymous.get(back)
    assert linked.status_code == 200
    assert linked.json()["email"] == "ada@work.example.com"
    assert (await sent_mail(EMAIL))[-1]["subject"] == "Another sign-in was added to your account"
    tokens_of(await sign_in(anonymous, provider, email="ada@work.example.com"))

    listed = await anonymous.get("/users/me/identities", headers=signed_in.header)
    assert listed.json()["items"] == [linked.json()]
    url = f"/users/me/identities/{linked.json()['id']}"
    assert (await anonymous.delete(url, headers=signed_in.header)).status_code == 204
    assert (await anonymous.delete(url, headers=signed_in.header)).status_code == 404


async def test_an_identity_belongs_to_one_account(
    anonymous: AsyncClient, provider: IdentityProvider, signed_in: Tokens
) -> None:
    other = {"email": "grace@example.com", "email_verified": True}
    tokens_of(await sign_in(anonymous, provider, **other))
    refused = await anonymous.get(
        await provider.sign_in(await begin_link(anonymous, signed_in), "ada", **other)
    )
    assert refused.status_code == 409


async def test_a_link_ends_with_the_session_that_began_it(
    anonymous: AsyncClient, provider: IdentityProvider, signed_in: Tokens
) -> None:
    url = await begin_link(anonymous, signed_in)
    back = await provider.sign_in(url, "ada", **ADA)
    await anonymous.post("/auth/logout", headers=signed_in.header)
    assert (await anonymous.get(back)).status_code == 401


async def test_the_last_way_into_an_account_stays(
    anonymous: AsyncClient, provider: IdentityProvider, mailed_token: MailedToken
) -> None:
    tokens = tokens_of(await sign_in(anonymous, provider))
    (identity,) = (await anonymous.get("/users/me/identities", headers=tokens.header)).json()[
        "items"
    ]
    url = f"/users/me/identities/{identity['id']}"
    assert (await anonymous.delete(url, headers=tokens.header)).status_code == 409
    body = {"current_password": "whatever it is", "new_password": "another long one"}
    none = await anonymous.put("/users/me/password", json=body, headers=tokens.header)
    assert none.status_code == 409

    await anonymous.post("/auth/password/forgot", json={"email": EMAIL})
    reset = {"token": await mailed_token(EMAIL, "reset"), "new_password": "a first password"}
    assert (await anonymous.post("/auth/password/reset", json=reset)).status_code == 204
    tokens_of(await sign_in(anonymous, provider))  # links it again, as the reset has unlinked it
    tokens = tokens_of(await by_password(anonymous, password="a first password"))
    (identity,) = (await anonymous.get("/users/me/identities", headers=tokens.header)).json()[
        "items"
    ]
    url = f"/users/me/identities/{identity['id']}"
    assert (await anonymous.delete(url, headers=tokens.header)).status_code == 204


async def test_a_deactivated_account_stays_out(
    anonymous: AsyncClient, provider: IdentityProvider, execute: Execute
) -> None:
    tokens_of(await sign_in(anonymous, provider))
    await execute("UPDATE users SET is_active = false")
    refused = await sign_in(anonymous, provider)
    assert refused.status_code == 403
    kinds = await execute("SELECT kind FROM account_events ORDER BY created_at DESC LIMIT 1")
    assert kinds[0]["kind"] == "sign_in_failed"


async def test_a_deactivation_under_way_is_waited_for(
    anonymous: AsyncClient, provider: IdentityProvider, race: Race, database_url: str
) -> None:
    tokens_of(await sign_in(anonymous, provider))
    back = await provider.sign_in(await begin(anonymous), "ada", **ADA)
    async with open_transaction(database_url, "UPDATE users SET is_active = false"):
        await race.start(anonymous.get(back))
    assert await race.statuses() == [403]


async def test_an_identity_that_is_being_unlinked_opens_no_session(
    anonymous: AsyncClient, provider: IdentityProvider, race: Race, database_url: str
) -> None:
    tokens_of(await sign_in(anonymous, provider))
    back = await provider.sign_in(await begin(anonymous), "ada", **ADA)
    async with open_transaction(database_url, LOCK_USER, "DELETE FROM identities"):
        await race.start(anonymous.get(back))
    assert await race.statuses() == [409]


async def test_no_identity_is_linked_from_a_session_that_is_ending(
    anonymous: AsyncClient,
    provider: IdentityProvider,
    signed_in: Tokens,
    race: Race,
    database_url: str,
) -> None:
    back = await provider.sign_in(await begin_link(anonymous, signed_in), "ada", **ADA)
    async with open_transaction(database_url, LOCK_USER, "DELETE FROM sessions"):
        await race.start(anonymous.get(back))
    assert await race.statuses() == [401]


async def test_a_refusal_at_the_provider_is_told(
    anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    url = await begin(anonymous)
    state = parse_qs(urlsplit(url).query)["state"][0]
    refused = await anonymous.get(CALLBACK, params={"state": state, "error": "access_denied"})
    assert refused.status_code == 400
    assert refused.json()["detail"] == "The provider did not sign you in: access_denied"


async def test_an_answer_of_another_issuer_is_refused(
    anonymous: AsyncClient, provider: IdentityProvider
) -> None:
    """Mix-up attack (RFC 9207)."""
    back = await provider.sign_in(await begin(anonymous), "ada", **ADA)
    refused = await anonymous.get(f"{back}&iss=https://evil.example.com")
    assert refused.status_code == 400


@pytest.mark.parametrize("parameter", ["next", "return_to", "redirect_uri", "redirect", "url"])
async def test_nobody_chooses_where_a_sign_in_leads(
    anonymous: AsyncClient, provider: IdentityProvider, parameter: str
) -> None:
    """Open redirect: by a parameter, or by a host header."""
    evil = "https://evil.example.com"
    answer = await anonymous.get(
        "/auth/oidc/mock/login",
        params={parameter: evil},
        headers={"X-Forwarded-Host": "evil.example.com", "Forwarded": "host=evil.example.com"},
    )
    location = answer.headers["location"]
    assert location.startswith(f"{provider.url}/oauth2/authorize?")
    assert "evil.example.com" not in location
    back = await provider.sign_in(location, "ada", **ADA)
    answer = await anonymous.get(f"{back}&{parameter}={evil}")
    assert answer.status_code == 200
    assert "location" not in answer.headers


async def test_providers_that_are_unknown_away_or_another(anonymous: AsyncClient) -> None:
    for name, status in (("nobody", 404), ("away", 503), ("other", 503)):
        assert (await anonymous.get(f"/auth/oidc/{name}/login")).status_code == status


@pytest.mark.parametrize(
    ("public_url", "issuer", "message"),
    [
        ("http://api.example.com", "https://id.example.com", "APP_PUBLIC_URL must be https"),
        ("https://api.example.com", "http://id.example.com", "the issuer of mock must be https"),
        ("https://api.example.com", "https://id.example.com", None),
    ],
)
def test_providers_in_production_are_encrypted(
    public_url: str, issuer: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = {"issuer": issuer, "client_id": "tessera", "client_secret": "hush"}
    monkeypatch.setenv("APP_OIDC_PROVIDERS", json.dumps({"mock": provider}))
    monkeypatch.setenv("APP_SMTP_URL", "log:")
    kernel = Settings(
        env="prod",
        database_url="postgresql://host/db",
        secret_key=SecretStr(SECRET_KEY),
        public_url=HttpUrl(public_url),
    )
    with pytest.raises(ConfigurationError, match=message) if message else nullcontext():
        load_feature_settings(UsersSettings, kernel)


async def test_two_first_sign_ins_at_once_make_one_account(
    anonymous: AsyncClient, provider: IdentityProvider, execute: Execute
) -> None:
    backs = [await provider.sign_in(await begin(anonymous), "ada", **ADA) for _ in range(2)]
    answers = await asyncio.gather(*(anonymous.get(back) for back in backs))
    assert sorted(answer.status_code for answer in answers) in ([200, 200], [200, 409])
    assert len(await execute("SELECT 1 FROM users")) == 1
    assert await status_with(anonymous, tokens_of(await sign_in(anonymous, provider)).header) == 200


def signed_in_ago(seconds: float | None) -> Forge:
    return changed(auth_time=None if seconds is None else round(time.time() - seconds))


@pytest.mark.parametrize(
    ("seconds", "status"), [(None, 401), (3_600, 401), (30, 201), (-3_600, 201)]
)
async def test_a_sign_in_is_as_recent_as_the_provider_says(
    anonymous: AsyncClient, provider: IdentityProvider, seconds: float | None, status: int
) -> None:
    """The browser may have been signed in there for days, and another person may use it now."""
    provider.forge = signed_in_ago(seconds)
    tokens = tokens_of(await sign_in(anonymous, provider))
    key = {"name": "import", "scopes": ["users:self"]}
    made = await anonymous.post("/users/me/api-keys", json=key, headers=tokens.header)
    assert made.status_code == status, made.text
    if status == 401:
        assert "insufficient_user_authentication" in made.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("max_age", "seconds", "status"),
    [(600, 30, 200), (600, 3_600, 403), (600, None, 403), (0, 0, 200), (0, 300, 403)],
)
async def test_a_recent_sign_in_can_be_asked_for(
    anonymous: AsyncClient,
    provider: IdentityProvider,
    max_age: int,
    seconds: float | None,
    status: int,
) -> None:
    """As after a challenge that says `max_age`. A provider may ignore it."""
    provider.forge = signed_in_ago(seconds)
    url = await begin(anonymous, max_age=max_age)
    asked = parse_qs(urlsplit(url).query)
    assert asked["max_age"] == [str(max_age)]
    assert asked.get("prompt") == (["login"] if max_age == 0 else None)
    answer = await anonymous.get(await provider.sign_in(url, "ada", **ADA))
    assert answer.status_code == status, answer.text
    if status == 403:
        assert f"within the last {max_age} s" in answer.json()["detail"]


@pytest.mark.parametrize("auth_time", [-1, 1e12, "yesterday"])
async def test_a_sign_in_at_no_time_is_refused(
    anonymous: AsyncClient, provider: IdentityProvider, auth_time: object
) -> None:
    provider.forge = changed(auth_time=auth_time)
    assert (await sign_in(anonymous, provider)).status_code == 400
