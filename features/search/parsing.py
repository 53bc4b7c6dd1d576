"""What a person types, taken apart: words to rank by, and what must or must not be there."""

import re
from dataclasses import dataclass

MAX_WORDS = 100

_TOKEN = re.compile(r'(-?)"([^"]*)"|(-?)(\S+)')
_WORD = re.compile(r"\w")
_NO_MARKUP = str.maketrans("<>", "  ")  # PostgreSQL would skip what looks like HTML


@dataclass(frozen=True)
class ParsedQuery:
    """A query in websearch syntax: quotes, `-word`, `or`.

    Attributes:
        text: as it was given.
        words: the words that are looked for, each once, also those of quoted phrases.
        required: the quoted phrases and the exclusions alone, in websearch syntax.
        unfinished: whether the last word may be the beginning of a longer one.
    """

    text: str
    words: tuple[str, ...]
    required: str
    unfinished: bool

    @property
    def meaning(self) -> str:
        """What is embedded: the words in their order, without the syntax."""
        return " ".join(self.words)


def parse_query(text: str) -> ParsedQuery:
    """Takes a query apart. Any text is a query; unbalanced quotes are letters like others."""
    text = text.translate(_NO_MARKUP)
    words: dict[str, None] = {}
    required: list[str] = []
    unfinished = False
    for token in _TOKEN.finditer(text):
        quoted_not, phrase, bare_not, bare = token.groups()
        excluded = bool(quoted_not or (bare_not and _WORD.match(bare or "")))
        if excluded or phrase is not None:
            required.append(token.group())
        if excluded or (bare or "").lower() == "or":
            continue
        found = [word for word in (phrase or bare or "").lower().split() if _WORD.search(word)]
        words.update(dict.fromkeys(found))
        unfinished = phrase is None and token.end() == len(text) and bool(found)
    return ParsedQuery(text, tuple(words)[:MAX_WORDS], " ".join(required), unfinished)
