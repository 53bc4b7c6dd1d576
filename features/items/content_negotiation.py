"""Content negotiation of import and export: `Content-Type`, `Content-Encoding` and `Accept`."""

import codecs
from email.message import Message
from typing import Annotated, Any

from fastapi import Depends, Request

from features.items.formats import Format
from shared.problems import NotAcceptable, UnsupportedMediaType

MEDIA_TYPES = {
    "application/jsonl": Format.JSON_LINES,
    "application/x-ndjson": Format.JSON_LINES,
    "text/csv": Format.CSV,
}
EXAMPLES = {
    Format.JSON_LINES: '{"external_id": "MUG-1", "title": "Enamel mug", "price": 12.5}\n',
    Format.CSV: "external_id,title,price\nMUG-1,Enamel mug,12.50\n",
}


def _body(media_type: str) -> dict[str, Any]:
    return {"schema": {"type": "string"}, "example": EXAMPLES[MEDIA_TYPES[media_type]]}


IMPORT_OPENAPI: dict[str, Any] = {
    "requestBody": {"required": True, "content": {name: _body(name) for name in MEDIA_TYPES}}
}
EXPORT_OPENAPI: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The items, one a line",
        "content": {format_.value: _body(format_.value) for format_ in Format},
        "headers": {
            "X-Snapshot-Seconds": {
                "description": "How long the items are those of one moment",
                "schema": {"type": "number"},
            }
        },
    }
}


async def _import_format(request: Request) -> Format:
    sent = request.headers.get("content-type", "")
    format_ = MEDIA_TYPES.get(sent.partition(";")[0].strip().lower())
    if format_ is None:
        known = ", ".join(MEDIA_TYPES)
        raise UnsupportedMediaType(f"The body must be one of {known}, not {sent or 'untyped'}")
    if not _is_utf8(sent):
        raise UnsupportedMediaType(f"The body must be in UTF-8, not {sent}")
    return format_


def _is_utf8(content_type: str) -> bool:
    header = Message()
    header["Content-Type"] = content_type
    charset = header.get_content_charset("utf-8")
    try:
        return codecs.lookup(charset).name in {"utf-8", "ascii"}
    except LookupError:
        return False


async def _import_encoding(request: Request) -> bool:
    encoding = request.headers.get("content-encoding", "").strip().lower() or "identity"
    if encoding not in {"identity", "gzip", "x-gzip"}:
        raise UnsupportedMediaType(f"Content-Encoding must be gzip or absent, not {encoding}")
    return encoding != "identity"


async def _export_format(request: Request) -> Format:
    accepted = request.headers.get("accept") or "*/*"
    qualities = _qualities(accepted)

    def quality(media_type: str) -> float:
        """Returns the quality of the most specific matching range (RFC 9110, section 12.5.1)."""
        ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
        return next((qualities[range_] for range_ in ranges if range_ in qualities), 0.0)

    best = max(MEDIA_TYPES, key=quality)
    if quality(best) == 0:
        raise NotAcceptable(f"Items are exported as {', '.join(Format)}, not as {accepted}")
    return MEDIA_TYPES[best]


def _qualities(accept: str) -> dict[str, float]:
    qualities = {}
    for entry in accept.lower().split(","):
        range_, *parameters = (part.strip() for part in entry.split(";"))
        quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        try:
            qualities[range_] = float(quality)
        except ValueError:
            qualities[range_] = 0.0
    return qualities


ImportFormat = Annotated[Format, Depends(_import_format)]
ImportEncoding = Annotated[bool, Depends(_import_encoding)]
ExportFormat = Annotated[Format, Depends(_export_format)]
