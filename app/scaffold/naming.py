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

    `feature` is the folder, the tag and the branch, and `plural` the table (order_items);
    `singular` is one entry (order_item). A feature may be named by either: audit, with audits.
    """

    feature: str
    singular: str
    plural: str

    @property
    def cls(self) -> str:
        return "".join(word.capitalize() for word in self.singular.split("_"))

    @property
    def words(self) -> str:
        return self.plural.replace("_", " ")

    @property
    def word(self) -> str:
        return self.singular.replace("_", " ")

    @property
    def a_word(self) -> str:
        return str(inflect.engine().a(self.word))

    @property
    def path(self) -> str:
        return "/" + self.plural.replace("_", "-")


def names_of(name: str, singular: str | None = None) -> Names:
    """Returns the names of a feature, from a plural or a singular in any common spelling; with
    `singular`, the name is a plural.

    >>> names_of("OrderItems")
    Names(feature='order_items', singular='order_item', plural='order_items')
    >>> names_of("audit")
    Names(feature='audit', singular='audit', plural='audits')
    >>> names_of("media", "medium").cls
    'Medium'

    Raises:
        NameRefused: the name cannot be that of a folder, a table and a class.
    """
    feature = _word(name)
    one, many = (_word(singular), feature) if singular else _numbers(feature)
    if one == many:
        raise NameRefused(f"say what one of the {many!r} is called with --singular")
    for word in dict.fromkeys((feature, many)):
        if word in RESERVED_WORDS:
            raise NameRefused(f"{word!r} is a reserved word of SQL; choose another")
        if word in OF_ALEMBIC:
            raise NameRefused(f"{word!r} means something else to Alembic; choose another")
        if len(word) > MAX_LENGTH:
            raise NameRefused(f"{word!r} is longer than {MAX_LENGTH} characters")
    return Names(feature, one, many)


def _word(name: str) -> str:
    """Returns the name in snake case, if it is valid."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    word = re.sub(r"[\s-]+", "_", spaced).lower()
    if not WELL_FORMED.fullmatch(word):
        raise NameRefused(f"{name!r} is not a name: use letters, digits and underscores")
    if word in FORBIDDEN:
        raise NameRefused(f"{word!r} is a word of Python's own; choose another")
    return word


def _numbers(feature: str) -> tuple[str, str]:
    """Returns the singular and the plural of a name that is one of them."""
    words = inflect.engine()
    *head, last = feature.split("_")
    if one := words.singular_noun(last):
        return _word("_".join([*head, str(one)])), feature
    return feature, _word("_".join([*head, str(words.plural_noun(last))]))
