from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from features.users.client_info import ClientInfo, CurrentClient
from features.users.dependencies import StateDep
from features.users.permissions import format_scope
from features.users.refresh_tokens.handlers import refresh
from features.users.sessions.handlers import Denial, Grant
from features.users.sign_in.handlers import Credentials, sign_in
from features.users.sign_in.schemas import TokenError, TokenResponse
from features.users.state import UsersState
from shared.auth import Principal
from shared.problems import TooManyRequests, error_message, responses
from shared.types import DatabaseText


class FormRoute(APIRoute):
    """Reports validation errors of a form as `invalid_request` errors of RFC 6749."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_form(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as invalid:
                first = invalid.errors()[0]
                return _error("invalid_request", f"{first['loc'][-1]}: {error_message(first)}")

        return handle_form


router = APIRouter(tags=["auth"], route_class=FormRoute)

NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
GRANT_TYPES = ("password", "refresh_token")


@router.post(
    "/auth/token",
    response_model=TokenResponse,
    responses={400: {"model": TokenError}, **responses(TooManyRequests)},
)
async def token(
    state: StateDep,
    client: CurrentClient,
    grant_type: Annotated[str | None, Form(examples=["password"])] = None,
    username: Annotated[DatabaseText | None, Form(description="The email", max_length=320)] = None,
    password: Annotated[DatabaseText | None, Form(max_length=1_000)] = None,
    refresh_token: Annotated[str | None, Form(max_length=1_000)] = None,
    scope: Annotated[
        str | None, Form(description="Less than everything, separated by spaces", max_length=1_000)
    ] = None,
) -> Response:
    """Exchanges email and password, or a refresh token, for an access token and the next
    refresh token (RFC 6749, sections 4.3 and 6)."""
    scope = scope or None  # the documentation's Authorize form sends an empty one
    if grant_type == "password" and username and password:
        outcome = await _by_password(state, Credentials(username, password, scope), client)
    elif grant_type == "refresh_token" and refresh_token:
        outcome = await _by_refresh_token(state, refresh_token, scope, client)
    elif grant_type and grant_type not in GRANT_TYPES:
        return _error("unsupported_grant_type", f"grant_type must be {' or '.join(GRANT_TYPES)}")
    else:
        return _error(
            "invalid_request",
            "grant_type password needs username and password,"
            " grant_type refresh_token needs refresh_token",
        )
    return await token_response(state, outcome)


async def _by_password(
    state: UsersState, credentials: Credentials, client: ClientInfo
) -> Grant | Denial:
    await state.rate_limits.sign_in(client.address, credentials.email)
    lifetime = timedelta(seconds=state.settings.session_lifetime)
    outcome = await sign_in(
        state.database, state.hasher, state.permissions, credentials, client, lifetime
    )
    if isinstance(outcome, Grant):
        await state.rate_limits.reset_sign_in(credentials.email)
    return outcome


async def _by_refresh_token(
    state: UsersState, token: str, scope: str | None, client: ClientInfo
) -> Grant | Denial:
    await state.rate_limits.refresh(client.address)
    lifetime = timedelta(seconds=state.settings.session_lifetime)
    grace = timedelta(seconds=state.settings.refresh_grace)
    async with state.database.orm_transaction() as session:  # commits a Denial too
        return await refresh(session, state.permissions, token, client, lifetime, grace, scope)


async def token_response(state: UsersState, outcome: Grant | Denial) -> Response:
    """Returns the response to a grant or a denial of tokens."""
    if isinstance(outcome, Denial):
        return _error(outcome.error, outcome.description)
    scopes = state.permissions.of(outcome.role, outcome.scope)
    principal = Principal(outcome.user_id, scopes, outcome.session_id)
    answer = TokenResponse(
        access_token=await state.keyring.sign(principal),
        expires_in=state.settings.access_token_lifetime,
        refresh_token=outcome.refresh_token,
        scope=format_scope(scopes),
    )
    return JSONResponse(answer.model_dump(), headers=NO_STORE)


def _error(error: str, description: str) -> Response:
    content = {"error": error, "error_description": description}
    return JSONResponse(content, status_code=400, headers=NO_STORE)
