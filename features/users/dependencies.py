"""Dependencies of the routes: who sends the request, and the state of the feature."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, Request

from features.users.sessions.handlers import SessionPrincipal
from features.users.state import UsersState
from shared.auth import Principal, requires
from shared.problems import Forbidden
from shared.state import resource

SAFE_METHODS = ("GET", "HEAD")

CurrentPrincipal = Annotated[Principal, requires("users:self")]
AdminPrincipal = Annotated[Principal, requires("users:admin")]


def _requires_session(*scopes: str) -> Any:
    async def session_principal(
        principal: Annotated[Principal, requires(*scopes)],
    ) -> SessionPrincipal:
        if principal.session_id is None:
            raise Forbidden("An API key cannot do this: it takes a session, so sign in")
        return SessionPrincipal(principal.user_id, principal.session_id, principal.scopes)

    return Depends(session_principal)


AnySession = Annotated[SessionPrincipal, _requires_session()]
"""A session, whatever its scopes."""

CurrentSession = Annotated[SessionPrincipal, _requires_session("users:self")]
"""A session. API keys get 403, so that a stolen key cannot create credentials."""

AdminSession = Annotated[SessionPrincipal, _requires_session("users:admin")]
"""An administrator's session. API keys get 403: they cannot change or delete accounts."""


StateDep = Annotated[UsersState, resource(UsersState)]


async def _sync_revocations(request: Request, state: StateDep) -> AsyncIterator[None]:
    yield
    if request.method not in SAFE_METHODS:
        await state.revocation_list.sync()


SyncRevocations = Depends(_sync_revocations, scope="function")
"""After a write, updates this process's revocation list before the response is sent.

It is a dependency of the router, so that it is entered before the database session and left after
the commit.
"""
