"""Who is asking, and what they may do: credentials, principals and scopes.

The kernel knows the words; a feature (users) knows the accounts, and supplies the
`Authenticator` that turns a credential into a principal.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from fastapi import FastAPI, Request, Security
from fastapi.security import APIKeyHeader, OAuth2PasswordBearer, SecurityScopes
from fastapi.security.base import SecurityBase

from shared.errors import Forbidden, Unauthorized


@dataclass(frozen=True, slots=True)
class Principal:
    """The account on whose behalf a request is made, and what it was allowed.

    `session_id` is the login that it came from; a machine's key has none.
    """

    user_id: UUID
    scopes: frozenset[str]
    session_id: UUID | None = None


Authenticator = Callable[[FastAPI, str], Awaitable[Principal]]
"""Turns an access token or an API key into its principal, or raises `Unauthorized`."""

bearer = OAuth2PasswordBearer(
    tokenUrl="auth/token", refreshUrl="auth/token", auto_error=False, scheme_name="OAuth2"
)
api_key = APIKeyHeader(
    name="X-API-Key",
    auto_error=False,
    scheme_name="ApiKey",
    description="A machine's key; it may also be sent as a bearer token",
)


class Authentication(SecurityBase):
    """A dependency that is a scheme itself, and asks the other, which shared/docs.py declares:
    as dependencies of a third, both would take a tenth of a request that reads one row."""

    model, scheme_name = bearer.model, bearer.scheme_name

    async def __call__(self, request: Request, required: SecurityScopes) -> Principal:
        """The principal of a request.

        Raises:
            Unauthorized: no credential, or one that is not valid (RFC 6750).
            Forbidden: the token lacks a scope that the route requires.
        """
        credential = await bearer(request) or await api_key(request)
        if not credential:
            raise Unauthorized("Not authenticated")
        principal: Principal = await request.app.state.authenticator(request.app, credential)
        structlog.contextvars.bind_contextvars(user_id=str(principal.user_id))
        if missing := sorted(set(required.scopes) - principal.scopes):
            scope = " ".join(missing)
            challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
            headers = {"WWW-Authenticate": challenge}
            raise Forbidden(f"This needs the scope {scope}", headers=headers)
        return principal


authenticate = Authentication()


def requires(*scopes: str) -> Any:
    """A dependency that gives the `Principal`, which must have all of these scopes.

    Declare it once a feature and scope: `Reader = Annotated[Principal, requires("items:read")]`.
    """
    return Security(authenticate, scopes=list(scopes))
