import re
from datetime import timedelta
from typing import Annotated
from uuid import UUID

from cryptography.fernet import InvalidToken
from fastapi import Path, Query, Request, Response, status
from fastapi.responses import JSONResponse, RedirectResponse

from features.users.handlers import single_sign_on
from features.users.handlers.sessions import Denial
from features.users.oidc import Attempt, Provider
from features.users.router.identity import Person
from features.users.router.tokens import NO_STORE, token_response
from features.users.schemas import Authorization, IdentityList, IdentityPublic, TokenResponse
from features.users.state import CallerDep, StateDep, UsersState
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
from shared.web.routing import Router

router = Router(tags=["identities"])

ATTEMPT_SECONDS = 600
ERROR_CODE = re.compile(r"[a-z_]{1,50}")

ProviderName = Annotated[str, Path(max_length=40, examples=["google"])]
Parameter = Annotated[str | None, Query(max_length=2_000)]


@router.get(
    "/auth/oidc/{provider}/login",
    status_code=status.HTTP_302_FOUND,
    response_class=RedirectResponse,
    responses=responses(NotFound, TooManyRequests, Unavailable),
)
async def login(provider: ProviderName, state: StateDep, caller: CallerDep) -> Response:
    """Sends the browser to a provider, to sign in there."""
    await state.limits.single_sign_on(caller.address)
    attempt = Attempt(provider=provider)
    url = await _provider(state, provider).authorization_url(attempt)
    return _remember(RedirectResponse(url, status.HTTP_302_FOUND, NO_STORE), state, attempt)


@router.post(
    "/users/me/identities/{provider}",
    response_model=Authorization,
    responses=responses(NotFound, TooManyRequests, Unavailable),
)
async def begin(
    provider: ProviderName, state: StateDep, person: Person, caller: CallerDep
) -> Response:
    """Begins to link a provider to the account: answers where the browser is to go."""
    await state.limits.single_sign_on(caller.address)
    attempt = Attempt(provider=provider, user_id=person.user_id, session_id=person.session_id)
    url = await _provider(state, provider).authorization_url(attempt)
    answer = JSONResponse(Authorization(authorization_url=url).model_dump(), headers=NO_STORE)
    return _remember(answer, state, attempt)


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
    caller: CallerDep,
    attempt_state: Annotated[str, Query(alias="state", max_length=100)],
    code: Parameter = None,
    error: Parameter = None,
    iss: Parameter = None,
) -> Response:
    """Where the provider sends the browser back to: answers with tokens, or with the identity
    that was linked."""
    await state.limits.single_sign_on(caller.address)
    attempt = _recall(request, state, provider, attempt_state)
    asked = _provider(state, provider)
    if iss is not None and not asked.is_issuer(iss):  # a mix-up attack (RFC 9207)
        raise BadRequest("The answer is not of the provider that was asked")
    if code is None:
        reason = error if error and ERROR_CODE.fullmatch(error) else "no code"
        raise BadRequest(f"The provider did not sign you in: {reason}")
    proven = await asked.identify(code, attempt)
    lifetime = timedelta(seconds=state.settings.session_lifetime)
    async with state.database.orm_transaction() as session:
        if attempt.user_id and attempt.session_id:
            linked = await single_sign_on.link(
                session, attempt.user_id, attempt.session_id, proven, caller
            )
            body = IdentityPublic.model_validate(linked).model_dump(mode="json")
            return _forget(JSONResponse(body, headers=NO_STORE), attempt)
        outcome = await single_sign_on.sign_in_with(session, proven, caller, lifetime)
    if isinstance(outcome, Denial):
        raise Forbidden(outcome.description)
    return _forget(await token_response(state, outcome), attempt)


@router.get("/users/me/identities")
async def list_(person: Person, session: OrmSession) -> IdentityList:
    """Who may sign in to the account at a provider."""
    found = await single_sign_on.list_identities(session, person.user_id)
    return IdentityList(items=[IdentityPublic.model_validate(row) for row in found])


@router.delete(
    "/users/me/identities/{identity_id:uuid}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(NotFound, Conflict),
)
async def delete(identity_id: UUID, person: Person, session: OrmSession, caller: CallerDep) -> None:
    """Ends that somebody at a provider may sign in to the account."""
    await single_sign_on.unlink(session, person.user_id, identity_id, caller)


def _provider(state: UsersState, name: str) -> Provider:
    if name not in state.providers:
        raise NotFound(f"There is no provider {name}")
    return state.providers[name]


def _cookie(attempt_state: str) -> str:
    return f"oidc_{attempt_state}"


def _remember(response: Response, state: UsersState, attempt: Attempt) -> Response:
    """Stores the attempt in an encrypted cookie.

    Only this browser can complete the attempt: a callback URL that was stolen, or was sent to
    another browser, is refused.
    """
    response.set_cookie(
        _cookie(attempt.state),
        state.attempts.encrypt(attempt.model_dump_json().encode()).decode(),
        max_age=ATTEMPT_SECONDS,
        path="/auth/oidc/",
        secure=state.secure,
        httponly=True,
        samesite="lax",
    )
    return response


def _recall(request: Request, state: UsersState, provider: str, attempt_state: str) -> Attempt:
    sealed = request.cookies.get(_cookie(attempt_state), "")
    try:
        opened = state.attempts.decrypt(sealed.encode(), ttl=ATTEMPT_SECONDS)
        attempt = Attempt.model_validate_json(opened)
    except (InvalidToken, ValueError):
        attempt = None
    if attempt is None or (attempt.provider, attempt.state) != (provider, attempt_state):
        raise BadRequest("This sign-in did not begin in this browser, or took too long")
    return attempt


def _forget(response: Response, attempt: Attempt) -> Response:
    response.delete_cookie(_cookie(attempt.state), path="/auth/oidc/")
    return response
