"""Dependencies that authorise requests."""

from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends

from shared.auth import Principal, requires
from shared.problems import Forbidden

Self = Annotated[Principal, requires("users:self")]
Admin = Annotated[Principal, requires("users:admin")]


@dataclass(frozen=True)
class SignedIn:
    """An account and the session of the request."""

    user_id: UUID
    session_id: UUID
    scopes: frozenset[str]


def _signed_in(*scopes: str) -> Any:
    async def signed_in(principal: Annotated[Principal, requires(*scopes)]) -> SignedIn:
        if principal.session_id is None:
            raise Forbidden("An API key cannot do this: it takes a session, so sign in")
        return SignedIn(principal.user_id, principal.session_id, principal.scopes)

    return Depends(signed_in)


AnyPerson = Annotated[SignedIn, _signed_in()]
Person = Annotated[SignedIn, _signed_in("users:self")]
"""A signed-in user. API keys get 403, so that a stolen key cannot create credentials."""
AdminPerson = Annotated[SignedIn, _signed_in("users:admin")]
"""A signed-in administrator. API keys get 403: they cannot change or delete accounts."""
