"""What an account may do: scopes by role, and scopes as OAuth writes them."""

from collections.abc import Iterable
from dataclasses import dataclass

from features.users.tables import Role

ADMIN_SUFFIX = ":admin"


@dataclass(frozen=True)
class Permissions:
    """All scopes that the features declare. Those that end in `:admin` are for administrators."""

    known: frozenset[str]

    def of(self, role: Role, scope: str | None = None) -> frozenset[str]:
        """What the role allows, narrowed to `scope` where that is given."""
        allowed = self.known
        if role != Role.ADMIN:
            allowed = frozenset(s for s in self.known if not s.endswith(ADMIN_SUFFIX))
        return allowed if scope is None else allowed & read_scope(scope)


def read_scope(scope: str) -> frozenset[str]:
    """The scopes of a list with spaces between (RFC 6749, section 3.3)."""
    return frozenset(scope.split())


def write_scope(scopes: Iterable[str]) -> str:
    return " ".join(sorted(scopes))


@dataclass(frozen=True)
class Caller:
    """Where a request came from."""

    address: str
    user_agent: str
