"""Authentication and authorization: credentials, principals and scopes.

The kernel defines the types; a feature has the accounts, and supplies the `Authenticator`.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import Depends, FastAPI, Request, Security
from fastapi.security import APIKeyHeader, OAuth2PasswordBearer, SecurityScopes
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from shared.db.sessions import WriteSession
from shared.problems import Forbidden, Unauthorized
from shared.slots import current_holder


@dataclass(frozen=True, slots=True)
class Principal:
    """The account that a request acts for, and its scopes.

    Its credential is an access token, with the `session_id` of the sign-in, or an API key.
    """

    user_id: UUID
    scopes: frozenset[str]
    session_id: UUID | None = None
    api_key_id: UUID | None = None


@dataclass(frozen=True, kw_only=True)
class Authenticator:
    """How a feature authenticates the requests to all features.

    `authenticate` turns an access token or an API key into its principal, or raises `Unauthorized`.
    `recognize` returns that principal if it can do so without waiting, and else None; it neither
    raises nor counts a use.
    `lock_access` returns whether the principal's credential still holds, and keeps it so until the
    end of the transaction: who would end it waits.
    `token_url` is the path of the OAuth 2.0 token endpoint, for the documentation.
    """

    authenticate: Callable[[FastAPI, str], Awaitable[Principal]]
    recognize: Callable[[FastAPI, str], Principal | None]
    lock_access: Callable[[WriteSession, Principal], Awaitable[bool]]
    token_url: str


bearer = OAuth2PasswordBearer(tokenUrl="", refreshUrl="", auto_error=False, scheme_name="OAuth2")
api_key = APIKeyHeader(
    name="X-API-Key",
    auto_error=False,
    scheme_name="ApiKey",
    description="A machine's key; it may also be sent as a bearer token",
)


class Authentication(SecurityBase):
    """The dependency that authenticates a request by bearer token or API key.

    To OpenAPI it is the bearer scheme; app/openapi.py adds the scheme of the API key. As two
    nested dependencies the schemes would take a tenth of the time of a request that reads one row.
    """

    model, scheme_name = bearer.model, bearer.scheme_name

    async def __call__(self, request: HTTPConnection, required: SecurityScopes) -> Principal:
        """Returns the principal of a request or a websocket.

        Raises:
            Unauthorized: the credential is missing or invalid (RFC 6750).
            Forbidden: the token lacks a scope that the route requires.
            TooManyRequests: the account has its share of all requests under way already.
        """
        credential = await credential_of(request)
        if not credential:
            raise Unauthorized("Not authenticated")
        principal: Principal = await request.app.state.authenticator.authenticate(
            request.app, credential
        )
        holder = str(principal.user_id)
        structlog.contextvars.bind_contextvars(user_id=holder)
        request.state.principal = principal
        current_holder.set(holder)
        if slot := request.scope["state"].get("slot"):
            slot.pass_to(holder)
        if missing := sorted(set(required.scopes) - principal.scopes):
            raise insufficient_scope(missing)
        return principal


async def credential_of(request: HTTPConnection) -> str | None:
    """Returns the access token or API key that a request has, valid or not."""
    return await bearer(request) or await api_key(request)


def insufficient_scope(missing: Iterable[str]) -> Forbidden:
    """Returns the problem of a credential that lacks these scopes (RFC 6750, section 3.1)."""
    scope = " ".join(missing)
    challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
    return Forbidden(f"This needs the scope {scope}", headers={"WWW-Authenticate": challenge})


authenticate = Authentication()


def requires(*scopes: str) -> Any:
    """Returns a dependency that gives the `Principal`, which must have all of these scopes.

    Declare it once for each feature and scope:
    `Reader = Annotated[Principal, requires("orders:read")]`.
    """
    return Security(authenticate, scopes=list(scopes))


def principal_of(request: HTTPConnection) -> Principal:
    """Returns the principal of a request that has been authenticated.

    Raises:
        RuntimeError: the route does not declare its principal, or declares it later.
    """
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:
        raise RuntimeError("Declare the principal of a route before what needs it")
    return principal


async def _confirm_access(request: Request) -> Callable[[WriteSession], Awaitable[None]]:
    async def confirm(session: WriteSession) -> None:
        authenticator: Authenticator = request.app.state.authenticator
        if not await authenticator.lock_access(session, principal_of(request)):
            headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            detail = "Your access ended while the request was running: nothing was changed"
            raise Unauthorized(detail, headers=headers)

    return confirm


ConfirmAccess = Annotated[
    Callable[[WriteSession], Awaitable[None]], Depends(_confirm_access, scope="function")
]
"""Looks again, in the transaction, whether the request's credential still holds; else raises 401.

For a request that may take longer than a second, such as an upload: its session, key or account
may have ended since it began. `await confirm_access(session)` is its last statement, so that
nothing is committed after that end, and who ends it waits for no more than the COMMIT.
"""
