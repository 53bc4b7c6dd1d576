"""OpenID providers: the authorization code flow with PKCE (OpenID Connect Core, RFC 7636),
configured from each provider's discovery document."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
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
from pydantic import BaseModel, Field, ValidationError

from features.users.accounts.email_addresses import EMAIL_ADAPTER
from features.users.opaque_tokens import random_token
from features.users.settings import OidcProvider
from features.users.single_sign_on.claims import (
    DEFAULT_AUTH_METHOD,
    JwkSet,
    Profile,
    ProviderMetadata,
    TokenAnswer,
)
from shared.problems import BadRequest, Forbidden, Unavailable, error_message

PROVIDER_TIMEOUT_SECONDS = 5.0
METADATA_LIFETIME_SECONDS = 3600.0
ID_TOKEN_LEEWAY_SECONDS = 60
SIGNATURE_ALGORITHMS = frozenset(
    ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
)

BAD_DOCUMENT = (OAuthError, JoseError, LookupError, TypeError, ValueError, AttributeError)
"""What the libraries raise, and pydantic, where a document is not what it should be."""

log = structlog.get_logger(__name__)


class AuthorizationRequest(BaseModel):
    """A request to sign in at a provider, until the provider answers.

    The browser stores it in an encrypted cookie, one cookie per request, so that two tabs do not
    interfere. `user_id` and `session_id` are set if it links an identity to an account. The sign-in
    at the provider may be at most `max_age` seconds old, if that is set.
    """

    provider: str
    state: str = Field(default_factory=random_token)
    nonce: str = Field(default_factory=random_token)
    verifier: str = Field(default_factory=lambda: random_token() + random_token())
    user_id: UUID | None = None
    session_id: UUID | None = None
    max_age: int | None = None


class VerifiedIdentity(BaseModel):
    """A person at a provider, by an ID token whose signature, issuer and audience were verified.
    `email` is None unless the provider has verified it, and it is a valid address.
    `authenticated_at` is when the person signed in there, if the provider says so: it may have been
    days ago."""

    issuer: str
    subject: str
    email: str | None
    name: str | None
    authenticated_at: datetime | None


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
        self._metadata: ProviderMetadata | None = None
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
            metadata = await self._discover(client)
            url, _ = client.create_authorization_url(
                str(metadata.authorization_endpoint),
                state=request.state,
                nonce=request.nonce,
                code_verifier=request.verifier,
                **_freshness(request),
            )
            return str(url)

    async def identify(self, code: str, request: AuthorizationRequest) -> VerifiedIdentity:
        """Exchanges the code for an ID token, and returns the verified identity.

        Raises:
            BadRequest: the code, the ID token or another document of the provider is not valid.
            Forbidden: the address is not of a domain that the provider is bound to, or the sign-in
                there is older than was asked for, or of an unknown age.
            Unavailable: the provider cannot be reached.
        """
        async with self._client() as client:
            metadata = await self._discover(client)
            if DEFAULT_AUTH_METHOD not in metadata.token_endpoint_auth_methods_supported:
                client.token_endpoint_auth_method = "client_secret_post"
            try:
                answer = await client.fetch_token(
                    str(metadata.token_endpoint), code=code, code_verifier=request.verifier
                )
                token = self._verify(metadata, TokenAnswer.model_validate(answer), request)
                profile = await self._fetch_profile(client, metadata, token)
            except BAD_DOCUMENT as error:
                log.warning("provider_answer_refused", provider=self.name, error=repr(error))
                if isinstance(error, JoseError):  # its keys may have changed: load them again
                    self._metadata_expires_at = float("-inf")
                raise BadRequest(f"The provider's answer is not valid: {_reason(error)}") from None
        return VerifiedIdentity(
            issuer=self._issuer,
            subject=token.sub,
            email=self._accepted_email(profile),
            name=profile.name or token.name,
            authenticated_at=_authenticated_at(token, request.max_age),
        )

    def _verify(
        self, metadata: ProviderMetadata, answer: TokenAnswer, request: AuthorizationRequest
    ) -> Profile:
        """Verifies the ID token, and returns its claims (OpenID Connect Core, 3.1.3.7)."""
        offered = metadata.id_token_signing_alg_values_supported
        algorithms = SIGNATURE_ALGORITHMS.intersection(offered)
        token = jwt.decode(answer.id_token, self._keys, algorithms=algorithms)
        client_id = self._settings.client_id
        claims = CodeIDToken(
            token.claims,
            token.header,
            options={
                "iss": {"essential": True, "value": metadata.issuer},
                "aud": {"essential": True, "value": client_id},
            },
            params={
                "nonce": request.nonce,
                "client_id": client_id,
                "access_token": answer.access_token,
            },
        )
        claims.validate(leeway=ID_TOKEN_LEEWAY_SECONDS)
        return Profile.model_validate(dict(claims))

    async def _fetch_profile(
        self, client: Any, metadata: ProviderMetadata, token: Profile
    ) -> Profile:
        """Returns the claims of the ID token, or, if it has no email, of the userinfo endpoint."""
        if token.email is not None or metadata.userinfo_endpoint is None:
            return token
        answer = await client.get(str(metadata.userinfo_endpoint))
        profile = Profile.model_validate(answer.raise_for_status().json())
        if profile.sub != token.sub:
            raise ValueError("userinfo is of another subject")
        return profile

    def _accepted_email(self, profile: Profile) -> str | None:
        """Returns the address in its normal form, if it is verified and valid.

        Raises:
            Forbidden: the provider is bound to domains, and it is of none of them.
        """
        email = None
        with suppress(ValidationError):
            email = EMAIL_ADAPTER.validate_python(profile.verified_email)
        domains = self._settings.email_domains
        if domains and (email is None or email.rpartition("@")[2] not in domains):
            raise Forbidden(
                f"This provider signs in verified addresses of {' or '.join(domains)} alone"
            )
        return email

    async def _discover(self, client: Any) -> ProviderMetadata:
        """Returns the discovery document; loads it and the keys once an hour."""
        if self._metadata and time.monotonic() < self._metadata_expires_at:
            return self._metadata
        try:
            url = f"{self._issuer}/.well-known/openid-configuration"
            found = ProviderMetadata.model_validate(await _get_json(client, url))
            self._check_issuer(found.issuer)
            keys = JwkSet.model_validate(await _get_json(client, str(found.jwks_uri)))
            self._keys = KeySet.import_key_set({"keys": keys.keys})
        except BAD_DOCUMENT as error:
            log.warning("provider_not_discovered", provider=self.name, error=repr(error))
            raise Unavailable("The provider cannot be used; please try again") from None
        self._metadata = found
        self._metadata_expires_at = time.monotonic() + METADATA_LIFETIME_SECONDS
        return found

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


def _freshness(request: AuthorizationRequest) -> dict[str, str]:
    """Returns the parameters that ask for a recent sign-in (OpenID Connect Core, 3.1.2.1)."""
    if request.max_age is None:
        return {}
    if request.max_age == 0:  # means prompt=login, which more providers know
        return {"max_age": "0", "prompt": "login"}
    return {"max_age": str(request.max_age)}


def _authenticated_at(token: Profile, max_age: int | None) -> datetime | None:
    """Returns when the person signed in at the provider, by its ID token.

    Raises:
        Forbidden: that is longer ago than `max_age` seconds, or the token does not say.
    """
    now = time.time()
    if max_age is not None and (token.auth_time or 0) < now - max_age - ID_TOKEN_LEEWAY_SECONDS:
        raise Forbidden(
            f"The provider does not say that you signed in there within the last {max_age} s:"
            " sign in with a password, which a mail to your address can set"
        )
    if token.auth_time is None:
        return None
    return datetime.fromtimestamp(min(token.auth_time, now), UTC)


async def _get_json(client: Any, url: str) -> Any:
    answer = await client.request("GET", url, withhold_token=True)
    return answer.raise_for_status().json()


def _reason(error: Exception) -> str:
    """Describes the fault of a document without quoting it."""
    if not isinstance(error, ValidationError):
        return "please begin again"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {error_message(first)}"
