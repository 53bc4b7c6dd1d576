"""In which format items come and go: `Content-Type`, `Content-Encoding` and `Accept`."""

from typing import Annotated, Any

from fastapi import Depends, Request

from features.items.formats import Format
from shared.errors import NotAcceptable, UnsupportedMediaType

MEDIA_TYPES = {
    "application/jsonl": Format.JSON_LINES,
    "application/x-ndjson": Format.JSON_LINES,
    "text/csv": Format.CSV,
}
WILDCARDS = {"*/*": Format.JSON_LINES, "application/*": Format.JSON_LINES, "text/*": Format.CSV}
EXAMPLES = {
    Format.JSON_LINES: '{"external_id": "MUG-1", "title": "Enamel mug", "price": 12.5}\n',
    Format.CSV: "external_id,title,price\nMUG-1,Enamel mug,12.50\n",
}


def _body(media_type: str) -> dict[str, Any]:
    return {"schema": {"type": "string"}, "example": EXAMPLES[MEDIA_TYPES[media_type]]}


_BODIES = {media_type: _body(media_type) for media_type in MEDIA_TYPES}
IMPORT_OPENAPI: dict[str, Any] = {"requestBody": {"required": True, "content": _BODIES}}
EXPORT_OPENAPI: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The items, one a line",
        "content": {format_.value: _body(format_.value) for format_ in Format},
    }
}


def _import_format(request: Request) -> Format:
    sent = request.headers.get("content-type", "")
    format_ = MEDIA_TYPES.get(sent.partition(";")[0].strip().lower())
    if format_ is None:
        known = ", ".join(MEDIA_TYPES)
        raise UnsupportedMediaType(f"The body must be one of {known}, not {sent or 'untyped'}")
    return format_


def _import_encoding(request: Request) -> bool:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip", "x-gzip"}:
        raise UnsupportedMediaType(f"Content-Encoding must be gzip or absent, not {encoding}")
    return encoding != "identity"


def _export_format(request: Request) -> Format:
    accepted = request.headers.get("accept", "*/*")
    for media_type in _by_preference(accepted):
        if format_ := MEDIA_TYPES.get(media_type) or WILDCARDS.get(media_type):
            return format_
    raise NotAcceptable(f"Items are exported as {', '.join(Format)}, not as {accepted}")


def _by_preference(accept: str) -> list[str]:
    """The media types of an `Accept` header, the best first (RFC 9110, section 12.5.1)."""
    weighted = []
    for entry in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in entry.split(";"))
        quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError:
            weight = 0.0
        if weight > 0:
            weighted.append((-weight, media_type))
    return [media_type for _, media_type in sorted(weighted, key=lambda entry: entry[0])]


ImportFormat = Annotated[Format, Depends(_import_format)]
ImportEncoding = Annotated[bool, Depends(_import_encoding)]
ExportFormat = Annotated[Format, Depends(_export_format)]
