"""Configuration from environment variables with the prefix `APP_`, or from `.env`."""

import os
import secrets
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, HttpUrl, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError
from sentry_sdk.utils import BadDsn, Dsn

from shared.postgres_urls import hosts_of

DATA = Path(__file__).resolve().parent.parent / ".data"
MIN_SECRET_BYTES = 32

AnySettings = TypeVar("AnySettings", bound=BaseSettings)


class ConfigurationError(RuntimeError):
    """Settings are missing or invalid. The message has a line for each, with its variable."""


def _postgres_url(url: str) -> str:
    with suppress(ValueError):
        if hosts_of(url):
            return url
    raise ValueError("must be a URL like postgresql://user:password@host:5432/database")


def _redis_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError("must be a URL like redis://host:6379/0")
    if parts.hostname and parts.port is None:  # not every library has the default port
        return parts._replace(netloc=f"{parts.netloc}:6379").geturl()
    return url


def _sentry_dsn(dsn: str) -> str:
    try:
        Dsn(dsn)
    except BadDsn:
        raise ValueError("must be a URL like https://key@host/1") from None
    return dsn


def _secret_key(key: SecretStr) -> SecretStr:
    if len(key.get_secret_value().encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"must have at least {MIN_SECRET_BYTES} bytes")
    return key


def _networks(addresses: tuple[str, ...]) -> tuple[str, ...]:
    for address in addresses:
        ip_network(address)  # raises a ValueError with the reason
    return addresses


PostgresUrl = Annotated[str, AfterValidator(_postgres_url)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
SecretKey = Annotated[SecretStr, AfterValidator(_secret_key)]
SentryDsn = Annotated[str, AfterValidator(_sentry_dsn)]
Networks = Annotated[tuple[str, ...], AfterValidator(_networks)]


FROM_ENVIRONMENT = SettingsConfigDict(env_prefix="APP_", env_ignore_empty=True, extra="ignore")
"""An empty variable counts as unset, as a compose file cannot omit one."""


class Settings(BaseSettings):
    """The kernel's settings. A feature declares its settings in a subclass of
    `FeatureSettings`.

    Pool sizes are connections, times are seconds, body sizes are bytes.
    """

    model_config = FROM_ENVIRONMENT

    env: Literal["dev", "test", "prod"] = "dev"
    database_url: PostgresUrl | None = None
    database_direct_url: PostgresUrl | None = None
    database_replica_url: PostgresUrl | None = None
    database_replica_lag: float = Field(default=5.0, gt=0, le=3600)
    database_pool_size: int = Field(default=10, ge=2, le=500)  # one more than a stream holds
    database_pool_timeout: float = Field(default=2.0, gt=0, le=60)
    database_statement_timeout: float = Field(default=10.0, gt=0, le=3600)
    database_lock_timeout: float = Field(default=3.0, gt=0, le=3600)
    database_snapshot_timeout: float = Field(default=60.0, gt=0, le=3600)
    redis_url: RedisUrl | None = None
    task_queue: Literal["inline", "celery"] = "inline"
    secret_key: SecretKey | None = None
    sentry_dsn: SentryDsn | None = None
    cors_origins: tuple[str, ...] = ()
    public_url: HttpUrl | None = None
    trusted_proxies: Networks = ()
    rate_limiting: bool | None = None
    max_body_size: int = Field(default=1_000_000, ge=1_000)
    max_concurrency: int = Field(default=200, ge=1)
    request_timeout: float | None = Field(default=30.0, gt=0, le=3600)
    stream_timeout: float = Field(default=3600.0, gt=0, le=86_400)
    shutdown_delay: float = Field(default=0.0, ge=0, le=300)
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    log_format: Literal["console", "json"] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_sql: bool = False

    @model_validator(mode="after")
    def fit_together(self) -> "Settings":
        for name in ("database_url", "secret_key", "public_url") if self.env == "prod" else ():
            if getattr(self, name) is None:
                raise ValueError(f"APP_{name.upper()} is required when APP_ENV=prod")
        if self.database_direct_url and self.database_url is None:
            raise ValueError(
                "APP_DATABASE_DIRECT_URL leads past a pooler, which APP_DATABASE_URL must name"
            )
        if self.task_queue == "celery" and self.redis_url is None:
            raise ValueError("APP_TASK_QUEUE=celery needs APP_REDIS_URL")
        if self.task_queue == "celery" and find_spec("celery") is None:
            raise ValueError("APP_TASK_QUEUE=celery needs Celery: pip install 'celery[redis]'")
        return self

    @property
    def json_logs(self) -> bool:
        return (self.log_format or ("json" if self.env == "prod" else "console")) == "json"

    @property
    def limits_rates(self) -> bool:
        return self.env != "test" if self.rate_limiting is None else self.rate_limiting

    @property
    def base_url(self) -> str:
        """The URL where clients reach the API, without a trailing slash."""
        return str(self.public_url or "http://127.0.0.1:8000").rstrip("/")

    def secret(self) -> str:
        """Returns the secret key. If none is set, one is generated once and kept under `.data/`."""
        return self.secret_key.get_secret_value() if self.secret_key else _generated_secret()


class FeatureSettings(BaseSettings):
    """Base class of a feature's settings, which the kernel reads once, at start."""

    model_config = FROM_ENVIRONMENT

    def check(self, kernel: Settings) -> None:
        """Checks these settings against the kernel's. Override it where they depend on each other.

        Raises:
            ValueError: they do not fit together; the message names the variable.
        """


AnyFeatureSettings = TypeVar("AnyFeatureSettings", bound=FeatureSettings)


def load_feature_settings(
    settings: type[AnyFeatureSettings], kernel: Settings
) -> AnyFeatureSettings:
    """Reads a feature's settings, and checks them against the kernel's.

    Raises:
        ConfigurationError: a setting is invalid; the message has the variable and the reason.
    """
    loaded = load_settings(settings)
    try:
        loaded.check(kernel)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    return loaded


def load_settings(settings: type[AnySettings]) -> AnySettings:
    """Reads a settings class from the environment, and from `.env` in the working directory.

    With `APP_ENV=test` in the environment, `.env` is not read: it belongs to a developer, and may
    name real services.

    Raises:
        ConfigurationError: a setting is invalid; the message has the variable and the reason.
    """
    file = None if os.environ.get("APP_ENV") == "test" else ".env"
    try:
        return settings(_env_file=file)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        raise ConfigurationError("\n".join(_line(each, settings) for each in wrong)) from None
    except SettingsError as error:  # a list or mapping; only its text has the field, in quotes
        name = _variable(settings, str(error).split('"')[1])
        raise ConfigurationError(f"{name}: must be JSON") from None


def _line(wrong: ErrorDetails, settings: type[BaseSettings]) -> str:
    message = wrong["msg"].removeprefix("Value error, ")
    return f"{_variable(settings, wrong['loc'][0])}: {message}" if wrong["loc"] else message


def _variable(settings: type[BaseSettings], field: str | int) -> str:
    return f"{settings.model_config.get('env_prefix', '')}{field}".upper()


def _generated_secret() -> str:
    path = DATA / "secret_key"
    if not path.exists():
        DATA.mkdir(exist_ok=True)
        candidate = DATA / f"secret_key.{secrets.token_hex(4)}"
        candidate.touch(mode=0o600)
        candidate.write_text(secrets.token_urlsafe(48))
        try:
            path.hardlink_to(candidate)  # atomic: two concurrent first starts use the same secret
        except FileExistsError:
            pass
        finally:
            candidate.unlink()
    return path.read_text()
