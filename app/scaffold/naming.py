"""Derives each form of a new feature's name that the code needs, or rejects the name."""

import builtins
import keyword
import re
from dataclasses import dataclass

import inflect
from sqlalchemy.dialects.postgresql.base import RESERVED_WORDS

from shared.feature import FeatureError

MAX_LENGTH = 25  # with longer names, lines of the templates are too long
FORBIDDEN = {*keyword.kwlist, *keyword.softkwlist, *dir(builtins)}
OF_ALEMBIC = {"base", "head", "heads"}
WELL_FORMED = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class NameRefused(FeatureError):
    """The name cannot be used. The message is one line that says why."""


@dataclass(frozen=True)
class Names:
    """The forms of a feature's name.

    `feature` is the folder, the table, the tag and the branch (order_items); `singular` is one
    entry (order_item).
    """

    feature: str
    singular: str

    @property
    def cls(self) -> str:
        return "".join(word.capitalize() for word in self.singular.split("_"))

    @property
    def words(self) -> str:
        return self.feature.replace("_", " ")

    @property
    def word(self) -> str:
        return self.singular.replace("_", " ")

    @property
    def a_word(self) -> str:
        return str(inflect.engine().a(self.word))

    @property
    def path(self) -> str:
        return "/" + self.feature.replace("_", "-")


def names_of(name: str, singular: str | None = None) -> Names:
    """Returns the names of a feature, from a plural in any common spelling.

    >>> names_of("OrderItems")
    Names(feature='order_items', singular='order_item')
    >>> names_of("media", "medium").cls
    'Medium'

    Raises:
        NameRefused: the name cannot be that of a folder, a table and a class.
    """
    feature = _word(name)
    one = _word(singular) if singular else _word(_singular(feature))
    if feature == one:
        raise NameRefused(f"say what one of the {feature!r} is called with --singular")
    if feature in RESERVED_WORDS:
        raise NameRefused(f"{feature!r} is a reserved word of SQL; choose another")
    if feature in OF_ALEMBIC:
        raise NameRefused(f"{feature!r} means something else to Alembic; choose another")
    if len(feature) > MAX_LENGTH:
        raise NameRefused(f"{feature!r} is longer than {MAX_LENGTH} characters")
    return Names(feature, one)


def _word(name: str) -> str:
    """Returns the name in snake case, if it is valid."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    word = re.sub(r"[\s-]+", "_", spaced).lower()
    if not WELL_FORMED.fullmatch(word):
        raise NameRefused(f"{name!r} is not a name: use letters, digits and underscores")
    if word in FORBIDDEN:
        raise NameRefused(f"{word!r} is a word of Python's own; choose another")
    return word


def _singular(feature: str) -> str:
    words = inflect.engine()
    *head, last = feature.split("_")
    one = words.singular_noun(last)
    if one:
        return "_".join([*head, str(one)])
    plural = "_".join([*head, str(words.plural_noun(last))])
    raise NameRefused(
        f"a feature has the name of many, like its path: {plural!r}, not {feature!r}"
        " (if it is a plural, say what one is called with --singular)"
    )
