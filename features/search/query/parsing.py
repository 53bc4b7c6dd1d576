"""Parses the search syntax: words to rank by, required phrases, excluded words."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

MAX_WORDS = 32
"""Words after these are not searched for, so that a search is not as long as its query."""
NO_CORRECTIONS: Mapping[str, str] = {}

_TOKEN = re.compile(r'(-?)(?:"([^"]*)"|(\S+))')
_WORD = re.compile(r"\w")
_NO_MARKUP = str.maketrans("<>", "  ")  # PostgreSQL's parser skips anything like an HTML tag


@dataclass(frozen=True)
class Alternative:
    """One of the alternatives that `or` separates.

    Attributes:
        words: distinct words to rank by, including those of the phrases.
        phrases: phrases that an item must contain.
        excluded: words and phrases that an item must not contain.
    """

    words: list[str] = field(default_factory=list)
    phrases: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ParsedQuery:
    """A query in websearch syntax: quotes, `-word`, `or`.

    Attributes:
        alternatives: the alternatives, of which an item has to match at least one.
        unfinished: the last word, if the user may still be typing it; else empty.
    """

    alternatives: list[Alternative]
    unfinished: str

    def text_to_embed(self, respelt: Mapping[str, str] = NO_CORRECTIONS) -> str:
        """Returns the text to embed: the distinct words in order, without the syntax, with the
        corrections of `respelt`."""
        words = [word for alternative in self.alternatives for word in alternative.words]
        return " ".join(respelt.get(word, word) for word in dict.fromkeys(words))

    @property
    def parameters(self) -> dict[str, str]:
        """The bind parameters of the search statement."""
        alternatives = json.dumps([asdict(alternative) for alternative in self.alternatives])
        return {"alternatives": alternatives, "unfinished": self.unfinished}


def parse_query(text: str) -> ParsedQuery:
    """Parses a query. Every text is valid: an unbalanced quote is an ordinary character."""
    text = text.translate(_NO_MARKUP)
    alternatives, left, unfinished = [Alternative()], MAX_WORDS, ""
    for token in _TOKEN.finditer(text):
        minus, phrase, bare = token.groups()
        unfinished = ""
        if phrase is None and token.group().lower() == "or":
            alternatives.append(Alternative())
        elif minus and (phrase is not None or _WORD.match(bare)):
            alternatives[-1].excluded.append(bare or phrase)
        elif phrase is not None:
            alternatives[-1].phrases.append(phrase)
            left -= _add(alternatives[-1].words, phrase.lower().split(), left)
        else:
            left -= _add(alternatives[-1].words, [bare.lower()], left)
            unfinished = bare.lower() if token.end() == len(text) else ""
    return ParsedQuery(alternatives, unfinished)


def _add(words: list[str], more: list[str], most: int) -> int:
    new = [word for word in dict.fromkeys(more) if _WORD.search(word) and word not in words][:most]
    words += new
    return len(new)
