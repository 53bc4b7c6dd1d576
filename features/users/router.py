from typing import Annotated

from fastapi import APIRouter, FastAPI, Form, Request, Response, status
from fastapi.responses import JSONResponse

from features.users import handlers, tokens
from features.users.schemas import TokenError, TokenResponse, UserCreate, UserPublic, UserUpdate
from shared.auth import Principal, requires
from shared.database import ReadSession, WriteSession, database_of, reading
from shared.errors import Conflict, Unauthorized, responses

users = APIRouter(prefix="/users", tags=["users"])
auth = APIRouter(prefix="/auth", tags=["auth"])

Self = Annotated[Principal, requires("users:self")]
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


@users.post("", status_code=status.HTTP_201_CREATED, responses=responses(Conflict))
async def create(new: UserCreate, session: WriteSession) -> UserPublic:
    """Registers an account."""
    return UserPublic.model_validate(await handlers.register(session, new))


@users.get("/me")
async def get_me(session: WriteSession, principal: Self) -> UserPublic:
    """The account that is asking."""
    return UserPublic.model_validate(await handlers.get_user(session, principal.user_id))


@users.patch("/me")
async def update_me(changes: UserUpdate, session: WriteSession, principal: Self) -> UserPublic:
    """Changes the account that is asking."""
    user = await handlers.update_user(session, principal.user_id, changes)
    return UserPublic.model_validate(user)


@users.delete("/me", status_code=status.HTTP_204_NO_CONTENT)
async def delete_me(session: WriteSession, principal: Self) -> None:
    """Deletes the account that is asking, and everything it owns."""
    await handlers.delete_user(session, principal.user_id)


@auth.post("/token", response_model=TokenResponse, responses={400: {"model": TokenError}})
async def token(
    request: Request,
    session: ReadSession,
    grant_type: Annotated[str | None, Form(examples=["password"])] = None,
    username: Annotated[str | None, Form(description="The email")] = None,
    password: Annotated[str | None, Form()] = None,
) -> Response:
    """Exchanges email and password for an access token (RFC 6749, section 4.3)."""
    if grant_type != "password":
        return _token_error("unsupported_grant_type", "grant_type must be password")
    if not username or not password:
        return _token_error("invalid_request", "username and password are required")
    user_id = await handlers.sign_in(session, username, password)
    if user_id is None:
        return _token_error("invalid_grant", "The email or the password is wrong")
    scopes = [scope for feature in request.app.state.features for scope in feature.scopes]
    answer = TokenResponse(
        access_token=tokens.issue_access_token(
            request.app.state.settings.secret(), user_id, scopes
        ),
        expires_in=tokens.LIFETIME_SECONDS,
        scope=" ".join(scopes),
    )
    return JSONResponse(answer.model_dump(), headers=NO_STORE)


def _token_error(error: str, description: str) -> Response:
    content = {"error": error, "error_description": description}
    return JSONResponse(content, status_code=400, headers=NO_STORE)


async def authenticator(app: FastAPI, token: str) -> Principal:
    """The principal of an access token whose account still exists."""
    principal = tokens.read_access_token(app.state.settings.secret(), token)
    async with reading(database_of(app)) as session:
        if not await handlers.user_exists(session, principal.user_id):
            raise Unauthorized("User not found")
    return principal


router = APIRouter()
router.include_router(users)
router.include_router(auth)
