"""Read-your-writes, where a replica is read from."""

from http import HTTPStatus

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.db import database_of

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class ReadYourWritesMiddleware:
    """Lets the client of a request that may have written read from the primary for a while.

    It does so before the response begins, for any kind of session, and after an error of the server
    too: the outcome may be unknown. A 4xx has written nothing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self.app(scope, receive, send)
            return

        async def record_and_send(message: Message) -> None:
            if message["type"] == "http.response.start" and not (
                HTTPStatus.BAD_REQUEST <= message["status"] < HTTPStatus.INTERNAL_SERVER_ERROR
            ):
                request = HTTPConnection(scope)
                replica = database_of(request.app).replica
                assert replica  # else create_app leaves this middleware out
                await replica.writers.add(request)
            await send(message)

        await self.app(scope, receive, record_and_send)
