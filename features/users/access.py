"""Permissions of an account: the scopes of its role, in the notation of OAuth."""

from collections.abc import Iterable
from dataclasses import dataclass

from features.users.tables import Role

ADMIN_SUFFIX = ":admin"


@dataclass(frozen=True)
class Permissions:
    """All scopes that the features declare. Scopes that end in `:admin` are for administrators."""

    known: frozenset[str]

    def of(self, role: Role, scope: str | None = None) -> frozenset[str]:
        """Returns the scopes of the role, limited to those in `scope` if it is given."""
        allowed = self.known
        if role != Role.ADMIN:
            allowed = frozenset(s for s in self.known if not s.endswith(ADMIN_SUFFIX))
        return allowed if scope is None else allowed & read_scope(scope)


def read_scope(scope: str) -> frozenset[str]:
    """Parses a space-separated list of scopes (RFC 6749, section 3.3)."""
    return frozenset(scope.split())


def write_scope(scopes: Iterable[str]) -> str:
    return " ".join(sorted(scopes))


@dataclass(frozen=True)
class Caller:
    """The client address and user agent of a request."""

    address: str
    user_agent: str
