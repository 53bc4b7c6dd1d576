"""Who may use these routes."""

from dataclasses import dataclass
from typing import Annotated
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


async def _signed_in(principal: Self) -> SignedIn:
    if principal.session_id is None:
        raise Forbidden("An API key cannot do this: it takes a session, so sign in")
    return SignedIn(principal.user_id, principal.session_id, principal.scopes)


Person = Annotated[SignedIn, Depends(_signed_in)]
"""What guards the ways into an account is for people: a stolen key must not make others."""
