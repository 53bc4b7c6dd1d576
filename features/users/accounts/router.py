from fastapi import APIRouter, status

from features.users.accounts import handlers
from features.users.accounts.deletion import delete_own_account
from features.users.accounts.schemas import EmailVerification, UserCreate, UserPublic, UserUpdate
from features.users.client_info import CurrentClient
from features.users.dependencies import CurrentPrincipal, CurrentSession, StateDep
from shared.db import OrmSession, ReadSession
from shared.problems import BadRequest, Conflict, TooManyRequests, responses

router = APIRouter(tags=["users"])


@router.post(
    "/users",
    status_code=status.HTTP_201_CREATED,
    responses=responses(Conflict, TooManyRequests),
)
async def create(new: UserCreate, state: StateDep, client: CurrentClient) -> UserPublic:
    """Registers an account, and mails it a token that verifies its address."""
    await state.rate_limits.register(client.address)
    user = await handlers.register(state.database, state.hasher, state.outbox, new, client)
    return UserPublic.model_validate(user)


@router.get("/users/me")
async def get_me(principal: CurrentPrincipal, session: ReadSession) -> UserPublic:
    """The account that is asking."""
    return await handlers.read_user(session, principal.user_id)


@router.patch("/users/me")
async def update_me(
    changes: UserUpdate, principal: CurrentPrincipal, session: OrmSession
) -> UserPublic:
    """Changes the account that is asking."""
    user = await handlers.update_user(session, principal.user_id, changes)
    return UserPublic.model_validate(user)


@router.delete("/users/me", status_code=status.HTTP_204_NO_CONTENT, responses=responses(Conflict))
async def delete_me(principal: CurrentSession, session: OrmSession, client: CurrentClient) -> None:
    """Deletes the account that is asking, and everything it owns.

    It takes a sign-in of the last 10 minutes. From this answer on nothing of it can be read, and
    its address is free; its rows are deleted in the background."""
    await delete_own_account(session, principal, client)


@router.post(
    "/auth/email/verify",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(BadRequest, TooManyRequests),
)
async def verify_email(
    body: EmailVerification, state: StateDep, client: CurrentClient, session: OrmSession
) -> None:
    """Verifies an address with the token that was mailed to it."""
    await state.rate_limits.mail_token(client.address)
    await handlers.verify_email(session, state.mail_tokens, body.token, client)


@router.post(
    "/users/me/verification",
    status_code=status.HTTP_202_ACCEPTED,
    responses=responses(TooManyRequests),
)
async def send_verification(
    state: StateDep, client: CurrentClient, principal: CurrentPrincipal, session: OrmSession
) -> None:
    """Mails the token that verifies the address once more, unless that is done."""
    user = await handlers.get_user(session, principal.user_id)
    await state.rate_limits.mail_token(client.address, user.email)
    await handlers.send_verification(session, state.outbox, user)
