"""Who may use these routes."""

from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends

from shared.auth import Principal, requires
from shared.errors import Forbidden

Self = Annotated[Principal, requires("users:self")]
Admin = Annotated[Principal, requires("users:admin")]


@dataclass(frozen=True)
class SignedIn:
    """An account, and the session that it is signed in with."""

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
"""What guards the ways into an account is for people: a stolen key must not make others."""
AdminPerson = Annotated[SignedIn, _signed_in("users:admin")]
"""Nor must one make administrators, or delete accounts."""
