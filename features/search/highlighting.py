"""Found words in HTML. PostgreSQL marks them with control characters, which no text can fake.

Angle brackets go in as control characters too: PostgreSQL would leave out what looks like a tag.
"""

from html import escape

START, STOP, LESS, GREATER = "\x02", "\x03", "\x04", "\x05"
MARKERS = f"StartSel={START}, StopSel={STOP}"
SPECIAL, BRACKETS = f"<>{START}{STOP}{LESS}{GREATER}", f"{LESS}{GREATER}"
"""What `translate` takes away from a text, and what it puts in the place of `<` and `>`."""

_HTML = {START: "<mark>", STOP: "</mark>", LESS: "&lt;", GREATER: "&gt;"}


def highlight(marked: str) -> str:
    """The text as HTML: everything escaped, found words in `<mark>`."""
    text = escape(marked)
    for character, html in _HTML.items():  # `translate` takes eight times as long
        text = text.replace(character, html)
    return text
