"""The responses to bytes that are no request, and to requests that never reach the application."""

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.middleware import AccessLogMiddleware, RequestIdMiddleware, SecurityHeadersMiddleware
from app.problem_details import problem
from shared.problems import Problem


def refusal(error: Problem) -> ASGIApp:
    """Returns an application that answers with this problem, with an id and a line in the log."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await problem(Request(scope), error)(scope, receive, send)

    return RequestIdMiddleware(AccessLogMiddleware(SecurityHeadersMiddleware(answer)))
