"""HTTP/1.1 on one connection: where each request begins and ends, and the limits of a client.

httptools refuses most of what RFC 9112 tells a server to refuse; this refuses the rest. Two readers
of the same bytes, such as a proxy and this server, must find the same requests.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.server import connections
from app.server.heads import (
    MAX_FIELD_BYTES,
    MAX_TARGET_BYTES,
    UriTooLong,
    check_handshake,
    check_head,
    too_many_fields,
)
from app.server.refusals import refusal
from shared.problems import BadRequest, Problem, RequestTimeout, TooManyRequests
from shared.web.client_address import site
from shared.web.deadlines import MIN_BYTES_PER_SECOND, STALL_SECONDS

HEAD_SECONDS = 10.0

BODY_BUFFER_BYTES = 1_000_000  # a request begins when so much of its body has arrived, or all
BODY_BUFFERS_BYTES = 64_000_000  # of all bodies that wait in this process

MAX_PIPELINED = 64  # requests of a connection that are sent before earlier ones are answered

LINGER_SECONDS = 2.0  # a client that is still sending has so long to read a response
CLOSE_SECONDS = STALL_SECONDS  # and any other


class HttpProtocol(HttpToolsProtocol):
    """A connection on which the server and any proxy before it find the same requests.

    - A request begins when its body has arrived and the response before has been taken, so that a
      slow client holds nothing but its connection. A body beyond `BODY_BUFFER_BYTES` is read while
      it arrives.
    - `Upgrade` is ignored (RFC 9110, section 7.8), except in the handshake of a websocket.
    - Ambiguous bytes are refused with a problem, and nothing after them is read.
    """

    transport: asyncio.Transport

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.network, self.opened_at = "unknown", 0.0
        self.reading: Literal["head", "body"] | None = None
        self.waiting: tuple[RequestResponseCycle, ASGIApp] | None = None  # begins next
        self.active: RequestResponseCycle | None = None  # the last one that has begun
        self.ended = False  # what arrives is discarded
        self.is_lingering = False
        self.timer: asyncio.TimerHandle | None = None  # for the rest of a head or a body
        self.body_bytes = 0  # since the timer was set
        self.was_paused = False  # since then
        self.other_bytes = 0  # since the head began, or since the last byte of the body
        self.has_new_body = False  # in the bytes that have just arrived

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.network = site(self.client[0]) if self.client else "unknown"
        self.opened_at = self.loop.time()
        self._close_if_idle()
        if len(self.connections) > connections.MAX_CONNECTIONS:
            connections.make_room(self._all())

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.waiting = None
        if self.active and not self.active.response_complete:  # not the last one, if pipelined
            self.active.disconnected = True
            self.active.message_event.set()
        super().connection_lost(exc)

    def _all(self) -> "list[HttpProtocol]":
        """Returns all connections of this process, except websockets."""
        return [each for each in self.connections if isinstance(each, HttpProtocol)]

    def is_waiting(self) -> bool:
        """Returns whether no request of this connection is in progress."""
        return self.active is None or self.active.response_complete

    # What arrives

    def data_received(self, data: bytes) -> None:
        if self.ended:
            return
        self.other_bytes += len(data)
        try:
            self._parse(data)
            if self.has_new_body:
                self._take_body()
            if self.other_bytes > 2 * MAX_FIELD_BYTES:
                raise too_many_fields()
        except Problem as error:
            self._refuse(error)
        else:
            if self.reading:
                self._await_the_rest()

    def _parse(self, data: bytes) -> None:
        """
        Raises:
            Problem: this is no request, or one that we do not serve.
        """
        pieces: list[bytes | memoryview] = [data]
        try:
            while pieces:
                piece = pieces.pop(0)
                try:
                    self.parser.feed_data(piece)
                except HttpParserUpgrade as offer:
                    rest = memoryview(piece)[offer.args[0] :]
                    if self._should_upgrade():
                        check_handshake(self.headers)
                        self._upgrade(bytes(rest))
                        return
                    # The parser takes what follows for another protocol. A new one is given the
                    # request without the offer, and so reads its body.
                    self.parser = HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                    pieces = [self._head_without_upgrade(), rest]
        except HttpParserError as error:
            cause = error.__context__ if isinstance(error, HttpParserCallbackError) else error
            if isinstance(cause, HttpParserError):
                raise BadRequest(f"This is not a valid HTTP request: {cause}") from None
            raise cause or error from None

    def _head_without_upgrade(self) -> bytes:
        start = f" HTTP/{self.scope['http_version']}\r\n".encode()
        lines = [self.scope["method"].encode(), b" ", self.url, start]
        for name, value in self.headers:
            if name != b"upgrade":
                lines += [name, b": ", value, b"\r\n"]
        return b"".join([*lines, b"\r\n"])

    def _should_upgrade(self) -> bool:
        """Returns whether this is the handshake of a websocket (RFC 6455, section 4.1)."""
        head = dict(self.headers)
        return (
            self.scope["method"] == "GET"
            and self.scope["http_version"] == "1.1"
            and b"transfer-encoding" not in head
            and head.get(b"content-length", b"0") == b"0"
            and self.is_waiting()  # else two would write to the connection
            and not self.waiting
            and super()._should_upgrade()
        )

    def _upgrade(self, rest: bytes) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        self.ended = True
        self.handle_websocket_upgrade()
        if rest:
            protocol = self.transport.get_protocol()
            assert isinstance(protocol, asyncio.Protocol)
            protocol.data_received(rest)

    # What the parser finds

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self.reading, self.other_bytes = "head", 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            raise UriTooLong(f"The URL has more than {MAX_TARGET_BYTES:,} bytes")

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()  # set if the response before ended since
        self.scope["method"] = self.parser.get_method().decode()
        self.scope["http_version"] = self.parser.get_http_version()
        check_head(self.scope, self.url)
        if len(self.pipeline) >= MAX_PIPELINED:
            raise TooManyRequests(f"More than {MAX_PIPELINED} requests wait for their responses")
        if self.parser.should_upgrade():
            return
        self.expect_100_continue &= self.scope["http_version"] == "1.1"
        super().on_headers_complete()
        self.headers = []  # of the trailer, which is discarded
        self.reading = "body"

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self.body_bytes += len(body)
        self.other_bytes = 0
        self.has_new_body = True

    def _take_body(self) -> None:
        """Reads on, or starts the request: once for all bytes that arrive together, as a client
        decides how many chunks they are."""
        self.has_new_body = False
        if self._awaits_body():
            self.flow.resume_reading()
        else:
            self._start_if_ready()
        self.was_paused |= self.flow.read_paused

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # its body comes yet
            return
        self._stop_timer()
        self.reading = None
        super().on_message_complete()
        self._start_if_ready()

    # Requests and responses

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.waiting = cycle, app
        self._start_if_ready()

    def _start_if_ready(self) -> None:
        # Before the client has read the last response, it could not be sent the next.
        if self.waiting and not self._awaits_body() and not self.flow.write_paused:
            self._start(*self.waiting)

    def _awaits_body(self) -> bool:
        if not self.waiting or not self.waiting[0].more_body:
            return False
        size = len(self.waiting[0].body)
        if size <= HIGH_WATER_LIMIT:
            return True
        buffered = sum(len(each.waiting[0].body) for each in self._all() if each.waiting)
        return size < BODY_BUFFER_BYTES and buffered < BODY_BUFFERS_BYTES

    def _start(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.waiting, self.active = None, cycle
        if cycle.more_body:
            cycle.transport = _LingeringTransport(self)  # type: ignore[assignment]
        if cycle.scope["http_version"] == "1.0":
            app = _without_chunks(app, cycle)
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        super().pause_writing()
        connections.drop_slow_readers(self._all())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._start_if_ready()

    def on_response_complete(self) -> None:
        if self.is_lingering:
            self.server_state.total_requests += 1
        else:
            # The rest of a body is read until the connection counts as idle.
            super().on_response_complete()

    def _refuse(self, error: Problem) -> None:
        """Answers with a problem once the requests before are answered, and reads no more."""
        self._stop_timer()
        self._unset_keepalive_if_required()
        self.ended = True
        refused, self.cycle = self.cycle, self._new_cycle()
        answer = self.cycle, refusal(error)
        if self.reading != "body":
            if self.is_waiting() and not self.waiting:
                self._start(*answer)
            else:
                self.pipeline.appendleft(answer)  # type: ignore[arg-type]
        elif self.waiting and self.waiting[0] is refused:
            self._start(*answer)
        elif self.pipeline:
            self.pipeline[0] = answer  # type: ignore[assignment]
        elif refused.response_started:
            self.cycle = refused
            self.close()
        else:
            refused.disconnected = True
            refused.message_event.set()
            self._start(*answer)

    def _new_cycle(self) -> RequestResponseCycle:
        """Returns the cycle of a refused request, of which only the path may be known."""
        known: Mapping[str, Any] = self.scope if self.reading else {}
        ids = [header for header in known.get("headers", ()) if header[0] == b"x-request-id"]
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": known.get("method", "-"),
            "path": known.get("path", "/"),
            "query_string": b"",
            "headers": ids,
            "client": self.client,
            "server": self.server,
            "scheme": self.scheme,
            "root_path": self.root_path,
        }
        cycle = RequestResponseCycle(
            scope=scope,  # type: ignore[arg-type]
            transport=_LingeringTransport(self),  # type: ignore[arg-type]
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        cycle.more_body = False
        return cycle

    def linger(self) -> None:
        """Closes the connection once the client has had time to read the response.

        To close it before everything is read would reset it (RFC 9112, section 9.6).
        """
        self.ended = self.is_lingering = True
        if not self.transport.is_closing():
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(LINGER_SECONDS, self.close)

    # Time

    def close(self) -> None:
        """Closes the connection, or drops it if the client does not take the rest of a response."""
        self.transport.close()
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        if not self.transport.is_closing():
            self.close()

    def _close_if_idle(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _await_the_rest(self) -> None:
        if self.waiting and self.waiting[0].waiting_for_100_continue:
            self.waiting[0].waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.timer is None:
            self.body_bytes, self.was_paused = 0, False
            seconds = HEAD_SECONDS if self.reading == "head" else STALL_SECONDS
            self.timer = self.loop.call_later(seconds, self._check_progress)

    def _stop_timer(self) -> None:
        if self.timer:
            self.timer.cancel()
            self.timer = None

    def _check_progress(self) -> None:
        self.timer = None
        if self.was_paused or self.flow.read_paused:  # by us
            self._await_the_rest()
            self.was_paused = self.flow.read_paused
        elif self.reading == "head":
            late = f"The head of the request did not arrive within {HEAD_SECONDS:g} s"
            self._refuse(RequestTimeout(late))
        elif self.body_bytes < MIN_BYTES_PER_SECOND * STALL_SECONDS:
            slow = f"The body arrived at less than {MIN_BYTES_PER_SECOND:,} bytes a second"
            self._refuse(RequestTimeout(slow))
        else:
            self._await_the_rest()


class _LingeringTransport:
    """The transport of a connection, with another way to close it."""

    def __init__(self, connection: HttpProtocol) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.linger


def _without_chunks(app: Any, cycle: RequestResponseCycle) -> ASGIApp:
    """Ends responses of unknown length by closing: HTTP/1.0 knows no chunks (RFC 9112, 6.1)."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        unchunked = False

        async def send_unchunked(message: Message) -> None:
            nonlocal unchunked
            if message["type"] == "http.response.start":
                unchunked = all(name.lower() != b"content-length" for name, _ in message["headers"])
                if unchunked:
                    cycle.chunked_encoding = False
            elif unchunked:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_unchunked)

    return serve
