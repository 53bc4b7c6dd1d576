"""Websockets: their id, log line, limits, errors, the end of its credential."""

import asyncio
import json
import time

import structlog
from fastapi.security import SecurityScopes
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from app.middleware.access_log import CLIENT_CLOSED_REQUEST
from app.middleware.request_id import request_id_of
from app.ops.metrics import WEBSOCKETS
from app.ops.tracing import tag_trace
from app.problem_details import internal_error, problem
from shared.auth import authenticate
from shared.problems import Forbidden, NotFound, Problem, Unavailable
from shared.slots import Slots, current_holder, current_network
from shared.web.client_address import site_of

CREDENTIAL_SECONDS = 5.0  # a message is sent if the credential was valid so long ago
MAX_PARTS = 10  # a holder may have one in so many of all websockets
ACCEPTED = 101
MAX_REASON_BYTES = 123  # RFC 6455, section 5.5
POLICY_VIOLATION = 1008
CLOSE_CODES = {500: 1011, 503: 1013}  # internal error, try again later

log = structlog.get_logger("request")


class WebSocketMiddleware:
    """Gives each websocket an id, logs it, bounds how many are open, and answers its errors.

    Until it is accepted, a websocket is a request: it has `seconds` for that, and an error is its
    response. Then it may stay open for as long as its credential is valid, and an error closes it.
    """

    def __init__(self, app: ASGIApp, seconds: float | None, concurrency: int) -> None:
        self.app, self.seconds = app, seconds
        self.slots = Slots("websockets", concurrency, most=max(1, concurrency // MAX_PARTS))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        scope.setdefault("state", {})["request_id"] = request_id = request_id_of(scope)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        tag_trace(request_id)
        socket = _Socket(scope, receive, send)
        try:
            if response := await self._run_in_slot(socket):
                await response(scope, socket.receive, socket.send)
        finally:
            log.info(
                "websocket",
                route=getattr(scope.get("route"), "path_format", None),
                status=socket.status,
                code=socket.code,
                ms=round((time.perf_counter() - started) * 1000, 1),
            )

    async def _run_in_slot(self, socket: "_Socket") -> Response | None:
        """Runs the application for one websocket, which counts for its network until it is
        authenticated, then for its account; returns the response to its error."""
        holder = site_of(socket.connection)
        try:
            slot = self.slots.take(holder)
        except Problem as refused:
            return problem(socket.connection, refused)
        current_holder.set(holder)
        current_network.set(holder)
        socket.connection.state.slot = slot
        WEBSOCKETS.set(self.slots.in_use)
        try:
            return await self._run(socket)
        finally:
            slot.release()
            WEBSOCKETS.set(self.slots.in_use)

    async def _run(self, socket: "_Socket") -> Response | None:
        try:
            async with asyncio.timeout(self.seconds) as socket.deadline:
                socket.connection.state.deadline = socket.deadline
                await self.app(socket.connection.scope, socket.receive, socket.send)
        except Exception as error:
            late, gone = socket.deadline.expired(), _is_disconnect(error)
            if not late and not gone:
                log.exception("unhandled_error")
            if gone or socket.status not in {CLIENT_CLOSED_REQUEST, ACCEPTED}:
                return None  # or its refusal has begun
            if late:
                detail = f"There was no answer within {self.seconds:g} s; please try again"
                return problem(socket.connection, Unavailable(detail))
            return internal_error(socket.connection)
        return None


class _Socket:
    """One websocket: `status` answers its handshake, `code` is that of its close frame."""

    deadline: asyncio.Timeout

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.connection, self._receive, self._send = HTTPConnection(scope), receive, send
        self.status, self._status_of_error = CLIENT_CLOSED_REQUEST, 500
        self.code: int | None = None
        self._checked_at = time.monotonic()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.receive":
            await self._check_credential()
        elif message["type"] == "websocket.disconnect" and self.code is None:
            self.code = message.get("code")
        return message

    async def send(self, message: Message) -> None:
        await (self._send_open if self.status == ACCEPTED else self._send_handshake)(message)

    async def _send_handshake(self, message: Message) -> None:
        match message["type"]:
            case "websocket.accept":
                self.status = ACCEPTED
                self.deadline.reschedule(None)
                self._add_id(message)
            case "websocket.http.response.start":
                self.status = int(message["status"])
                self._add_id(message)
            case "websocket.close":  # the server would answer without a problem
                response = problem(self.connection, self._refusal(message.get("reason")))
                await response(self.connection.scope, self.receive, self.send)
                return
        await self._send(message)

    def _refusal(self, reason: str | None) -> Problem:
        if "endpoint" in self.connection.scope:
            return Forbidden(reason or "The websocket was not accepted")
        return NotFound(f"There is no websocket at {self.connection.scope['path']}")

    async def _send_open(self, message: Message) -> None:
        """Sends a message; instead of the response to an error, the frame that closes for it."""
        match message["type"]:
            case "websocket.http.response.start":
                self._status_of_error = int(message["status"])
                return
            case "websocket.http.response.body":
                message = self._close_frame(message["body"])
            case "websocket.send" if time.monotonic() > self._checked_at + CREDENTIAL_SECONDS:
                await self._check_credential()
        if message["type"] == "websocket.close":
            if self.code is not None:  # it is closed already
                return
            self.code = message.get("code", 1000)
        await self._send(message)

    def _add_id(self, message: Message) -> None:
        header = (b"x-request-id", self.connection.state.request_id.encode())
        message["headers"] = [*message.get("headers", ()), header]

    def _close_frame(self, body: bytes) -> Message:
        """Returns the message that closes the websocket for the problem in this body."""
        reason = json.loads(body)["detail"].encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        code = CLOSE_CODES.get(self._status_of_error, POLICY_VIOLATION)
        return {"type": "websocket.close", "code": code, "reason": reason}

    async def _check_credential(self) -> None:
        await check_credential(self.connection)
        self._checked_at = time.monotonic()


async def check_credential(connection: HTTPConnection) -> None:
    """Checks the credential of a websocket or a stream again, if it has one.

    Raises:
        Unauthorized: it is no longer valid.
        TooManyRequests: the API key has exceeded its rate limit.
    """
    if hasattr(connection.state, "principal"):
        await authenticate(connection, SecurityScopes())


def _is_disconnect(error: BaseException) -> bool:
    """Returns whether the client has gone; of a task group, whether all its errors say so."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_disconnect(each) for each in error.exceptions)
    return isinstance(error, WebSocketDisconnect | ClientDisconnected)
