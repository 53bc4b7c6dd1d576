"""Permissions of an account: the scopes of its role, in the notation of OAuth."""

from collections.abc import Iterable
from dataclasses import dataclass

from features.users.accounts.tables import Role
from shared.auth import insufficient_scope

ADMIN_SUFFIX = ":admin"


@dataclass(frozen=True)
class Permissions:
    """All scopes that the features declare. Scopes that end in `:admin` are for administrators."""

    scopes: frozenset[str]

    def of(self, role: Role, scope: str | None = None) -> frozenset[str]:
        """Returns the scopes of the role, limited to those in `scope` if it is given."""
        allowed = self.scopes
        if role != Role.ADMIN:
            allowed = frozenset(s for s in self.scopes if not s.endswith(ADMIN_SUFFIX))
        return allowed if scope is None else allowed & parse_scope(scope)

    def require_all(self, role: Role, scopes: frozenset[str]) -> None:
        """Checks that a session has all scopes of the role: it is to open a way in that has them.

        Raises:
            Forbidden: the session has fewer.
        """
        if missing := sorted(self.of(role) - scopes):
            raise insufficient_scope(missing)


def parse_scope(scope: str) -> frozenset[str]:
    """Parses a space-separated list of scopes (RFC 6749, section 3.3)."""
    return frozenset(scope.split())


def format_scope(scopes: Iterable[str]) -> str:
    return " ".join(sorted(scopes))
