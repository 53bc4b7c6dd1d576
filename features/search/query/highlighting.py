"""Highlights the matching words as HTML.

PostgreSQL marks the words with control characters; the statement removes these from the text first,
so that a text cannot forge a mark. Angle brackets are replaced by control characters too, because
`ts_headline` drops anything that looks like an HTML tag.
"""

from html import escape

START, STOP, LESS, GREATER = "\x02", "\x03", "\x04", "\x05"
TITLE_OPTIONS = f"HighlightAll=true, StartSel={START}, StopSel={STOP}"
DESCRIPTION_OPTIONS = (
    'MaxFragments=2, MaxWords=25, MinWords=8, ShortWord=0, FragmentDelimiter=" … ",'
    f" StartSel={START}, StopSel={STOP}"
)
"""Options of `ts_headline`: a title is shown whole, of a description what is around the words."""
REPLACED_CHARACTERS, REPLACEMENTS = f"<>{START}{STOP}{LESS}{GREATER}", f"{LESS}{GREATER}"
"""The characters that `translate` replaces or removes, and the replacements of `<` and `>`."""

_HTML = {START: "<mark>", STOP: "</mark>", LESS: "&lt;", GREATER: "&gt;"}


def highlight(marked: str) -> str:
    """Returns the text as escaped HTML, with the matching words in `<mark>`."""
    text = escape(marked)
    for character, html in _HTML.items():  # str.translate takes eight times as long
        text = text.replace(character, html)
    return text
