"""The documents of an OpenID provider, as far as they are read; others are refused."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, HttpUrl

from shared.types import DatabaseText

DEFAULT_AUTH_METHOD = "client_secret_basic"


class ProviderMetadata(BaseModel):
    """The discovery document (OpenID Connect Discovery, section 3)."""

    issuer: str
    authorization_endpoint: HttpUrl
    token_endpoint: HttpUrl
    jwks_uri: HttpUrl
    userinfo_endpoint: HttpUrl | None = None
    token_endpoint_auth_methods_supported: list[str] = [DEFAULT_AUTH_METHOD]
    id_token_signing_alg_values_supported: list[str] = ["RS256"]


class JwkSet(BaseModel):
    """The keys of the provider (RFC 7517)."""

    keys: list[dict[str, Any]]


class TokenAnswer(BaseModel):
    """The answer of the token endpoint."""

    id_token: str
    access_token: str | None = None


class Profile(BaseModel):
    """The claims of an ID token, or of the userinfo endpoint.

    An address is verified only if the document that names it says so.
    """

    sub: Annotated[DatabaseText, Field(min_length=1, max_length=255)]
    name: DatabaseText | None = None
    email: DatabaseText | None = None
    email_verified: Any = False
    auth_time: Annotated[float, Field(ge=0, lt=1e11)] | None = None

    @property
    def verified_email(self) -> str | None:
        """The address, if it is verified: `"true"`, a string, says that it may not be."""
        return self.email if self.email_verified is True else None
