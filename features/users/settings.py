"""Settings of accounts: token lifetimes, OpenID providers and rate limits."""

import re
from datetime import timedelta
from typing import Annotated

from limits import parse
from pydantic import AfterValidator, BaseModel, Field, HttpUrl, SecretStr

from shared.settings import FeatureSettings, Settings

MAX_ACCESS_SECONDS = 3600
MAX_ACCESS_LIFETIME = timedelta(seconds=MAX_ACCESS_SECONDS)
"""The longest lifetime of an access token under any settings, including earlier ones."""


def _rate(rate: str) -> str:
    try:
        parse(rate)
    except ValueError:
        raise ValueError("must be a rate like 10/minute") from None
    return rate


def _slugs(providers: dict[str, "OidcProvider"]) -> dict[str, "OidcProvider"]:
    for name in providers:
        if not re.fullmatch(r"[a-z0-9-]{1,40}", name):
            raise ValueError(f"{name!r} must be a name like google, as it is part of a URL")
    return providers


class OidcProvider(BaseModel):
    """An OpenID provider, and the API's client registration there."""

    issuer: HttpUrl
    client_id: str
    client_secret: SecretStr
    scope: str = "openid email profile"


Rate = Annotated[str, AfterValidator(_rate)]


class UsersSettings(FeatureSettings):
    """Rates are strings like `10/minute`; lifetimes are seconds.

    `APP_OIDC_PROVIDERS` is JSON: `{"google": {"issuer": …, "client_id": …, "client_secret": …}}`.
    `APP_FRONTEND_URL` is the base URL of links in mails; without it, mails hold the bare token.
    """

    access_token_lifetime: int = Field(default=15 * 60, ge=60, le=MAX_ACCESS_SECONDS)
    session_lifetime: int = Field(default=30 * 24 * 3600, ge=3600)
    refresh_grace: int = Field(default=10, ge=0, le=60)
    password_reset_lifetime: int = Field(default=3600, ge=300, le=24 * 3600)
    email_verification_lifetime: int = Field(default=3 * 24 * 3600, ge=300)
    frontend_url: HttpUrl | None = None
    oidc_providers: Annotated[dict[str, OidcProvider], AfterValidator(_slugs)] = Field(
        default_factory=dict
    )
    rate_sign_in_per_address: Rate = "30/minute"
    rate_sign_in_per_account: Rate = "10/minute"
    rate_refresh_per_address: Rate = "120/minute"
    rate_register_per_address: Rate = "20/hour"
    rate_reset_per_address: Rate = "20/hour"
    rate_reset_per_account: Rate = "5/hour"
    rate_api_key: Rate = "1200/minute"

    def check(self, kernel: Settings) -> None:
        """Requires https in production, as the exchange with a provider carries credentials."""
        if not self.oidc_providers or kernel.env != "prod":
            return
        if not kernel.base_url.startswith("https:"):
            raise ValueError("APP_PUBLIC_URL must be https where APP_OIDC_PROVIDERS is set")
        for name, provider in self.oidc_providers.items():
            if provider.issuer.scheme != "https":
                raise ValueError(f"APP_OIDC_PROVIDERS: the issuer of {name} must be https")

    @property
    def access_lifetime(self) -> timedelta:
        return timedelta(seconds=self.access_token_lifetime)
