"""What a person types, taken apart: words to rank by, and what must or must not be there."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

MAX_WORDS = 100
NOTHING: Mapping[str, str] = {}

_TOKEN = re.compile(r'(-?)(?:"([^"]*)"|(\S+))')
_WORD = re.compile(r"\w")
_NO_MARKUP = str.maketrans("<>", "  ")  # PostgreSQL would skip what looks like HTML


@dataclass(frozen=True)
class Choice:
    """What stands between two `or`.

    Attributes:
        words: that are looked for, each once, also those of the phrases.
        phrases: that must be there.
        excluded: words and phrases that must not.
    """

    words: list[str] = field(default_factory=list)
    phrases: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ParsedQuery:
    """A query in websearch syntax: quotes, `-word`, `or`.

    Attributes:
        choices: an item has to fit one of them.
        unfinished: the last word, if it may be the beginning of a longer one; else empty.
    """

    choices: list[Choice]
    unfinished: str

    def meaning(self, respelt: Mapping[str, str] = NOTHING) -> str:
        """What is embedded: the words in their order, some spelt otherwise, without the syntax."""
        words = [word for choice in self.choices for word in choice.words]
        return " ".join(respelt.get(word, word) for word in dict.fromkeys(words))

    @property
    def parameters(self) -> dict[str, str]:
        """What the statement is given of it."""
        choices = json.dumps([asdict(choice) for choice in self.choices])
        return {"choices": choices, "unfinished": self.unfinished}


def parse_query(text: str) -> ParsedQuery:
    """Takes a query apart. Any text is a query; unbalanced quotes are letters like others."""
    text = text.translate(_NO_MARKUP)
    choices, left, unfinished = [Choice()], MAX_WORDS, ""
    for token in _TOKEN.finditer(text):
        minus, phrase, bare = token.groups()
        unfinished = ""
        if phrase is None and token.group().lower() == "or":
            choices.append(Choice())
        elif minus and (phrase is not None or _WORD.match(bare)):
            choices[-1].excluded.append(bare or phrase)
        elif phrase is not None:
            choices[-1].phrases.append(phrase)
            left -= _add(choices[-1].words, phrase.lower().split(), left)
        else:
            left -= _add(choices[-1].words, [bare.lower()], left)
            unfinished = bare.lower() if token.end() == len(text) else ""
    return ParsedQuery(choices, unfinished)


def _add(words: list[str], more: list[str], most: int) -> int:
    new = [word for word in dict.fromkeys(more) if _WORD.search(word) and word not in words][:most]
    words += new
    return len(new)
