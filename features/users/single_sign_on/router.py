import re
from datetime import timedelta
from typing import Annotated
from uuid import UUID

from cryptography.fernet import InvalidToken
from fastapi import APIRouter, Path, Query, Request, Response, status
from fastapi.responses import JSONResponse, RedirectResponse

from features.users.client_info import CurrentClient
from features.users.dependencies import CurrentSession, StateDep
from features.users.sessions.handlers import Denial
from features.users.sign_in.router import NO_STORE, token_response
from features.users.sign_in.schemas import TokenResponse
from features.users.single_sign_on import handlers
from features.users.single_sign_on.provider import AuthorizationRequest, Provider
from features.users.single_sign_on.schemas import Authorization, IdentityList, IdentityPublic
from features.users.state import UsersState
from shared.db import OrmSession
from shared.problems import (
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    responses,
)

router = APIRouter(tags=["identities"])

COOKIE_SECONDS = 600
MAX_AGE_SECONDS = 86_400
ERROR_CODE = re.compile(r"[a-z_]{1,50}")

ProviderName = Annotated[str, Path(max_length=40, examples=["google"])]
MaxAge = Annotated[
    int | None,
    Query(
        ge=0,
        le=MAX_AGE_SECONDS,
        description="Seconds since the sign-in at the provider, at most; 0 asks for a new one",
    ),
]
Parameter = Annotated[str | None, Query(max_length=2_000)]


@router.get(
    "/auth/oidc/{provider}/login",
    status_code=status.HTTP_302_FOUND,
    response_class=RedirectResponse,
    responses=responses(TooManyRequests, Unavailable),
)
async def login(
    provider: ProviderName, state: StateDep, client: CurrentClient, max_age: MaxAge = None
) -> Response:
    """Sends the browser to a provider, to sign in there.

    What takes a recent sign-in refuses an older one with a `max_age`: send it here, and the
    provider asks for a new one, or the callback answers 403."""
    await state.rate_limits.single_sign_on(client.address)
    authorization = AuthorizationRequest(provider=provider, max_age=max_age)
    url = await _provider(state, provider).authorization_url(authorization)
    response = RedirectResponse(url, status.HTTP_302_FOUND, NO_STORE)
    return _set_cookie(response, state, authorization)


@router.post(
    "/users/me/identities/{provider}",
    response_model=Authorization,
    responses=responses(TooManyRequests, Unavailable),
)
async def begin(
    provider: ProviderName, state: StateDep, principal: CurrentSession, client: CurrentClient
) -> Response:
    """Begins to link a provider to the account: answers where the browser is to go.

    It takes a sign-in of the last 10 minutes with all scopes of the account; the owner gets a
    mail."""
    await state.rate_limits.single_sign_on(client.address)
    async with state.database.orm_transaction() as session:
        await handlers.check_may_link(session, state.permissions, principal)
    authorization = AuthorizationRequest(
        provider=provider, user_id=principal.user_id, session_id=principal.session_id
    )
    url = await _provider(state, provider).authorization_url(authorization)
    response = JSONResponse(Authorization(authorization_url=url).model_dump(), headers=NO_STORE)
    return _set_cookie(response, state, authorization)


@router.get(
    "/auth/oidc/{provider}/callback",
    response_model=TokenResponse | IdentityPublic,
    responses=responses(
        BadRequest, Conflict, Forbidden, NotFound, TooManyRequests, Unauthorized, Unavailable
    ),
)
async def callback(
    request: Request,
    provider: ProviderName,
    state: StateDep,
    client: CurrentClient,
    oauth_state: Annotated[str, Query(alias="state", max_length=100)],
    code: Parameter = None,
    error: Parameter = None,
    iss: Parameter = None,
) -> Response:
    """Where the provider sends the browser back to: answers with tokens, or with the identity
    that was linked."""
    await state.rate_limits.single_sign_on(client.address)
    authorization = _read_cookie(request, state, provider, oauth_state)
    openid_provider = _provider(state, provider)
    if iss is not None and not openid_provider.is_issuer(iss):  # a mix-up attack (RFC 9207)
        raise BadRequest("The answer is not of the provider that was asked")
    if code is None:
        reason = error if error and ERROR_CODE.fullmatch(error) else "no code"
        raise BadRequest(f"The provider did not sign you in: {reason}")
    verified = await openid_provider.identify(code, authorization)
    lifetime = timedelta(seconds=state.settings.session_lifetime)
    async with state.database.orm_transaction() as session:
        if authorization.user_id and authorization.session_id:
            linked = await handlers.link(
                session,
                state.outbox,
                authorization.user_id,
                authorization.session_id,
                verified,
                client,
            )
            body = IdentityPublic.model_validate(linked).model_dump(mode="json")
            return _delete_cookie(JSONResponse(body, headers=NO_STORE), authorization)
        outcome = await handlers.sign_in_with(session, state.outbox, verified, client, lifetime)
    if isinstance(outcome, Denial):
        raise Forbidden(outcome.description)
    return _delete_cookie(await token_response(state, outcome), authorization)


@router.get("/users/me/identities")
async def list_(principal: CurrentSession, session: OrmSession) -> IdentityList:
    """Who may sign in to the account at a provider."""
    found = await handlers.list_identities(session, principal.user_id)
    return IdentityList(items=[IdentityPublic.model_validate(row) for row in found])


@router.delete(
    "/users/me/identities/{identity_id:uuid}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(Conflict),
)
async def delete(
    identity_id: UUID, principal: CurrentSession, session: OrmSession, client: CurrentClient
) -> None:
    """Unlinks a provider: it no longer signs in to the account."""
    await handlers.unlink(session, principal.user_id, identity_id, client)


def _provider(state: UsersState, name: str) -> Provider:
    if name not in state.providers:
        raise NotFound(f"There is no provider {name}")
    return state.providers[name]


def _cookie_name(oauth_state: str) -> str:
    return f"oidc_{oauth_state}"


def _set_cookie(
    response: Response, state: UsersState, authorization: AuthorizationRequest
) -> Response:
    """Stores the authorization request in an encrypted cookie.

    Only this browser can complete it: a callback URL that was stolen, or was sent to another
    browser, is refused.
    """
    response.set_cookie(
        _cookie_name(authorization.state),
        state.cookie_encryption.encrypt(authorization.model_dump_json().encode()).decode(),
        max_age=COOKIE_SECONDS,
        path="/auth/oidc/",
        secure=state.secure_cookies,
        httponly=True,
        samesite="lax",
    )
    return response


def _read_cookie(
    request: Request, state: UsersState, provider: str, oauth_state: str
) -> AuthorizationRequest:
    cookie = request.cookies.get(_cookie_name(oauth_state), "")
    try:
        decrypted = state.cookie_encryption.decrypt(cookie.encode(), ttl=COOKIE_SECONDS)
        authorization = AuthorizationRequest.model_validate_json(decrypted)
    except (InvalidToken, ValueError):
        authorization = None
    if authorization is None or (authorization.provider, authorization.state) != (
        provider,
        oauth_state,
    ):
        raise BadRequest("This sign-in did not begin in this browser, or took too long")
    return authorization


def _delete_cookie(response: Response, authorization: AuthorizationRequest) -> Response:
    response.delete_cookie(_cookie_name(authorization.state), path="/auth/oidc/")
    return response
