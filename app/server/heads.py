"""The head of a request: its limits, and the faults that a server must refuse (RFC 9112)."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from shared.problems import BadRequest, Problem

MAX_TARGET_BYTES = 16_384
MAX_FIELDS = 100
MAX_FIELD_BYTES = 65_536  # of all header fields together, and of all trailer fields

TARGET = re.compile(rb"(https?://[^/?#]+)?/[^#]*")  # RFC 9112, section 3.2
HOST = re.compile(rb"([\w.~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(:\d*)?")  # RFC 3986, section 3.2.2

KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")


class UriTooLong(Problem):
    status = HTTPStatus.REQUEST_URI_TOO_LONG


class RequestHeaderFieldsTooLarge(Problem):
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


class NotImplementedHere(Problem):
    """A method or a transfer coding that no route can have (RFC 9110, section 15.6.2)."""

    status = HTTPStatus.NOT_IMPLEMENTED


class UpgradeRequired(Problem):
    status = HTTPStatus.UPGRADE_REQUIRED
    headers: Mapping[str, str] = {"Sec-WebSocket-Version": "13"}


class HttpVersionNotSupported(Problem):
    status = HTTPStatus.HTTP_VERSION_NOT_SUPPORTED


def check_head(scope: Mapping[str, Any], target: bytes) -> None:
    """Checks what httptools does not, in the head of a request.

    Raises:
        Problem: a server is to refuse it (RFC 9112), or it is too large.
    """
    fields: list[tuple[bytes, bytes]] = scope["headers"]
    if len(fields) > MAX_FIELDS or sum([len(n) + len(v) for n, v in fields]) > MAX_FIELD_BYTES:
        raise too_many_fields()
    version, head = scope["http_version"], dict(fields)
    if version not in {"1.0", "1.1"}:
        raise HttpVersionNotSupported(f"HTTP/{version} is not served, HTTP/1.1 is")
    if scope["method"] == "CONNECT":
        raise NotImplementedHere("This is not a proxy: there is no CONNECT")
    if not TARGET.fullmatch(target):
        raise BadRequest("The target of the request is neither a path nor a URL")
    if len(head) < len(fields) and [name for name, _ in fields].count(b"host") > 1:
        raise BadRequest("The request has more than one Host header")
    if b"host" not in head and version == "1.1":
        raise BadRequest("The request has no Host header")
    if not HOST.fullmatch(head.get(b"host", b"").strip()):
        raise BadRequest("The Host header is neither a name nor an address")
    if b"transfer-encoding" in head:
        _check_transfer_encoding(version, fields)


def _check_transfer_encoding(version: str, fields: list[tuple[bytes, bytes]]) -> None:
    codings = [value.strip().lower() for name, value in fields if name == b"transfer-encoding"]
    if version == "1.0":
        raise BadRequest("A request of HTTP/1.0 cannot have a Transfer-Encoding")
    if codings != [b"chunked"]:
        raise NotImplementedHere("The only Transfer-Encoding that is known is chunked")


def check_handshake(fields: list[tuple[bytes, bytes]]) -> None:
    """Checks the handshake of a websocket (RFC 6455, section 4.2.1).

    Raises:
        Problem: its version is another, or it has no key.
    """
    head = dict(fields)
    if head.get(b"sec-websocket-version") != b"13":
        raise UpgradeRequired("The Sec-WebSocket-Version must be 13")
    if not KEY.fullmatch(head.get(b"sec-websocket-key", b"")):
        raise BadRequest("The Sec-WebSocket-Key must be 16 bytes in base64")


def too_many_fields() -> RequestHeaderFieldsTooLarge:
    return RequestHeaderFieldsTooLarge(
        f"The request has more than {MAX_FIELDS} header fields, or more than"
        f" {MAX_FIELD_BYTES:,} bytes of them"
    )
