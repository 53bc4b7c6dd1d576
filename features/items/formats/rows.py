"""Rows of an import, accepted or rejected."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import ValidationError

from features.items.schemas import ImportRow
from shared.problems import error_message


@dataclass(frozen=True)
class Accepted:
    line: int
    row: ImportRow


@dataclass(frozen=True)
class Rejected:
    """A row that was rejected. The reason is formatted only when `detail` is read."""

    line: int
    reason: str | ValidationError

    def __post_init__(self) -> None:
        if isinstance(self.reason, ValidationError):
            self.reason.__traceback__ = None  # it would keep all frames alive

    @property
    def detail(self) -> str:
        return self.reason if isinstance(self.reason, str) else _describe(self.reason)


RowBatches: TypeAlias = AsyncIterator[Sequence[Accepted | Rejected]]


def _describe(error: ValidationError) -> str:
    reasons = []
    for problem in error.errors(include_url=False, include_input=False):
        field = ".".join(map(str, problem["loc"]))
        message = error_message(problem)
        reasons.append(f"{field}: {message}" if field else message)
    return "; ".join(reasons)
