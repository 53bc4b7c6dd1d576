"""Settings of accounts: token lifetimes, mail, OpenID providers and rate limits."""

import re
from datetime import timedelta
from typing import Annotated
from urllib.parse import urlsplit

from limits import parse
from pydantic import AfterValidator, BaseModel, Field, HttpUrl, SecretStr, ValidationError

from features.users.accounts.email_addresses import EMAIL_ADAPTER
from shared.settings import FeatureSettings, Settings

MAX_ACCESS_SECONDS = 3600
MAX_ACCESS_LIFETIME = timedelta(seconds=MAX_ACCESS_SECONDS)
"""The longest lifetime of an access token under any settings, including earlier ones."""


def _check_rate(rate: str) -> str:
    try:
        parse(rate)
    except ValueError:
        raise ValueError("must be a rate like 10/minute") from None
    return rate


def _check_names(providers: dict[str, "OidcProvider"]) -> dict[str, "OidcProvider"]:
    for name in providers:
        if not re.fullmatch(r"[a-z0-9-]{1,40}", name):
            raise ValueError(f"{name!r} must be a name like google, as it is part of a URL")
    return providers


def _check_smtp_url(url: str) -> str:
    parts = urlsplit(url)
    valid = parts.scheme in {"smtp", "smtps"} and parts.hostname and parts.port != 0
    if url != "log:" and not valid:
        raise ValueError("must be a URL like smtps://user:password@host:465, or log:")
    return url


def _normalize_domain(domain: str) -> str:
    try:
        return EMAIL_ADAPTER.validate_python(f"a@{domain}").rpartition("@")[2]
    except ValidationError:
        raise ValueError(f"{domain!r} must be a domain like example.com") from None


EmailDomain = Annotated[str, AfterValidator(_normalize_domain)]


class OidcProvider(BaseModel):
    """An OpenID provider, and the API's client registration there. With `email_domains`, only
    verified addresses of these domains sign in by it."""

    issuer: HttpUrl
    client_id: str
    client_secret: SecretStr
    scope: str = "openid email profile"
    email_domains: list[EmailDomain] = []


Rate = Annotated[str, AfterValidator(_check_rate)]
SmtpUrl = Annotated[str, AfterValidator(_check_smtp_url)]


class UsersSettings(FeatureSettings):
    """Rates are strings like `10/minute`; lifetimes are seconds. What happened to an account is
    kept for `APP_ACCOUNT_EVENTS_DAYS`, failed sign-ins without an account for at most 30 days.

    `APP_OIDC_PROVIDERS` is JSON: `{"google": {"issuer": …, "client_id": …, "client_secret": …}}`.
    `APP_FRONTEND_URL` is the base URL of links in mails; without it, mails hold the bare token.
    """

    access_token_lifetime: int = Field(default=15 * 60, ge=60, le=MAX_ACCESS_SECONDS)
    session_lifetime: int = Field(default=30 * 24 * 3600, ge=3600)
    refresh_grace: int = Field(default=10, ge=0, le=60)
    password_reset_lifetime: int = Field(default=3600, ge=300, le=24 * 3600)
    email_verification_lifetime: int = Field(default=3 * 24 * 3600, ge=300)
    account_events_days: int = Field(default=365, ge=1)
    frontend_url: HttpUrl | None = None
    smtp_url: SmtpUrl | None = None
    mail_from: str = "Tessera <no-reply@localhost>"
    oidc_providers: Annotated[dict[str, OidcProvider], AfterValidator(_check_names)] = Field(
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
        """Requires a mail server in production, and https for the exchange with a provider, which
        carries credentials."""
        if kernel.env != "prod":
            return
        if self.smtp_url is None:
            raise ValueError(
                "APP_SMTP_URL is required when APP_ENV=prod; `log:` writes mails to the log"
            )
        if self.oidc_providers and not kernel.base_url.startswith("https:"):
            raise ValueError("APP_PUBLIC_URL must be https where APP_OIDC_PROVIDERS is set")
        for name, provider in self.oidc_providers.items():
            if provider.issuer.scheme != "https":
                raise ValueError(f"APP_OIDC_PROVIDERS: the issuer of {name} must be https")

    @property
    def access_lifetime(self) -> timedelta:
        return timedelta(seconds=self.access_token_lifetime)
