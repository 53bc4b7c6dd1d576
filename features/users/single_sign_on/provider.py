"""OpenID providers: the authorization code flow with PKCE (OpenID Connect Core, RFC 7636),
configured from each provider's discovery document."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from ssl import SSLContext
from typing import Any
from uuid import UUID

import httpx2
import structlog
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from pydantic import BaseModel, Field

from features.users.accounts.email_addresses import normalize_email
from features.users.opaque_tokens import random_token
from features.users.settings import OidcProvider
from shared.problems import BadRequest, Unavailable

PROVIDER_TIMEOUT_SECONDS = 5.0
METADATA_LIFETIME_SECONDS = 3600.0
ID_TOKEN_LEEWAY_SECONDS = 60
DEFAULT_AUTH_METHOD = "client_secret_basic"
SIGNATURE_ALGORITHMS = frozenset(
    ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
)

log = structlog.get_logger(__name__)


class AuthorizationRequest(BaseModel):
    """A request to sign in at a provider, until the provider answers.

    The browser stores it in an encrypted cookie, one cookie per request, so that two tabs do not
    interfere. `user_id` and `session_id` are set if it links an identity to an account.
    """

    provider: str
    state: str = Field(default_factory=random_token)
    nonce: str = Field(default_factory=random_token)
    verifier: str = Field(default_factory=lambda: random_token() + random_token())
    user_id: UUID | None = None
    session_id: UUID | None = None


class VerifiedIdentity(BaseModel):
    """The claims of an ID token whose signature, issuer and audience were verified."""

    issuer: str
    subject: str
    email: str | None
    name: str | None


@cache
def _trusted_authorities() -> SSLContext:
    """Loads the CA certificates, once: loading blocks the event loop for about 20 ms."""
    return httpx2.create_ssl_context()


class Provider:
    """A provider. Its discovery document and its keys are cached for an hour."""

    def __init__(self, name: str, settings: OidcProvider, base_url: str) -> None:
        self.name = name
        self._settings = settings
        self._issuer = str(settings.issuer).rstrip("/")
        self._redirect_uri = f"{base_url}/auth/oidc/{name}/callback"
        self._metadata: Mapping[str, Any] = {}
        self._keys = KeySet([])
        self._metadata_expires_at = float("-inf")

    def is_issuer(self, issuer: str) -> bool:
        return issuer.rstrip("/") == self._issuer

    async def authorization_url(self, request: AuthorizationRequest) -> str:
        """Returns the URL where the user signs in.

        Raises:
            Unavailable: the provider cannot be reached.
        """
        async with self._client() as client:
            await self._discover(client)
            url, _ = client.create_authorization_url(
                self._metadata["authorization_endpoint"],
                state=request.state,
                nonce=request.nonce,
                code_verifier=request.verifier,
            )
            return str(url)

    async def identify(self, code: str, request: AuthorizationRequest) -> VerifiedIdentity:
        """Exchanges the code for an ID token, and returns the verified identity.

        Raises:
            BadRequest: the code or the ID token is not valid.
            Unavailable: the provider cannot be reached.
        """
        async with self._client() as client:
            await self._discover(client)
            supported = self._metadata.get(
                "token_endpoint_auth_methods_supported", [DEFAULT_AUTH_METHOD]
            )
            if (
                DEFAULT_AUTH_METHOD not in supported
            ):  # the default method (OpenID Connect Discovery, 3)
                client.token_endpoint_auth_method = "client_secret_post"
            try:
                answer = await client.fetch_token(
                    self._metadata["token_endpoint"], code=code, code_verifier=request.verifier
                )
                claims = self._verify(answer, request)
                claims |= await self._fetch_userinfo(client, claims)
            except (OAuthError, JoseError, KeyError, TypeError, ValueError) as error:
                log.warning("provider_answer_refused", provider=self.name, error=repr(error))
                if isinstance(error, JoseError):
                    self._metadata_expires_at = float(
                        "-inf"
                    )  # its keys may have changed: load them again
                raise BadRequest("The provider's answer is not valid: please begin again") from None
        verified = claims.get("email_verified") is True
        return VerifiedIdentity(
            issuer=self._issuer,
            subject=claims["sub"],
            email=normalize_email(str(claims["email"]))
            if verified and claims.get("email")
            else None,
            name=claims.get("name"),
        )

    def _verify(self, answer: Mapping[str, Any], request: AuthorizationRequest) -> dict[str, Any]:
        """Verifies the ID token, and returns its claims (OpenID Connect Core, 3.1.3.7)."""
        offered = self._metadata.get("id_token_signing_alg_values_supported", ["RS256"])
        algorithms = SIGNATURE_ALGORITHMS.intersection(offered)
        token = jwt.decode(answer["id_token"], self._keys, algorithms=algorithms)
        client_id = self._settings.client_id
        claims = CodeIDToken(
            token.claims,
            token.header,
            options={
                "iss": {"essential": True, "value": self._metadata["issuer"]},
                "aud": {"essential": True, "value": client_id},
            },
            params={
                "nonce": request.nonce,
                "client_id": client_id,
                "access_token": answer.get("access_token"),
            },
        )
        claims.validate(leeway=ID_TOKEN_LEEWAY_SECONDS)
        return dict(claims)

    async def _fetch_userinfo(self, client: Any, claims: Mapping[str, Any]) -> dict[str, Any]:
        """Returns email and name from the userinfo endpoint, if the ID token has no email."""
        if "email" in claims or "userinfo_endpoint" not in self._metadata:
            return {}
        answer = await client.get(self._metadata["userinfo_endpoint"])
        info: dict[str, Any] = answer.raise_for_status().json()
        if info["sub"] != claims["sub"]:
            raise ValueError("userinfo is of another subject")
        return {name: info[name] for name in ("email", "email_verified", "name") if name in info}

    async def _discover(self, client: Any) -> None:
        """Loads the discovery document and the keys, unless they are less than an hour old."""
        if time.monotonic() < self._metadata_expires_at:
            return
        try:
            found = await _get_json(client, f"{self._issuer}/.well-known/openid-configuration")
            self._check_issuer(found["issuer"])
            self._keys = KeySet.import_key_set(await _get_json(client, found["jwks_uri"]))
        except (JoseError, KeyError, TypeError, ValueError) as error:
            log.warning("provider_not_discovered", provider=self.name, error=repr(error))
            raise Unavailable("The provider cannot be used; please try again") from None
        self._metadata, self._metadata_expires_at = (
            found,
            time.monotonic() + METADATA_LIFETIME_SECONDS,
        )

    def _check_issuer(self, issuer: str) -> None:
        if not self.is_issuer(issuer):
            raise ValueError(f"the issuer is {issuer}")

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        settings = self._settings
        try:
            async with AsyncOAuth2Client(
                client_id=settings.client_id,
                client_secret=settings.client_secret.get_secret_value(),
                scope=settings.scope,
                redirect_uri=self._redirect_uri,
                code_challenge_method="S256",
                timeout=PROVIDER_TIMEOUT_SECONDS,
                verify=_trusted_authorities(),
            ) as client:
                yield client
        except httpx2.HTTPError as error:
            log.warning("provider_not_reached", provider=self.name, error=repr(error))
            raise Unavailable("The provider cannot be reached; please try again") from None


async def _get_json(client: Any, url: str) -> Any:
    answer = await client.request("GET", url, withhold_token=True)
    return answer.raise_for_status().json()
