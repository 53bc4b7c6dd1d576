from fastapi import status

from features.users.handlers import accounts, verification
from features.users.router.identity import Person, Self
from features.users.schemas import EmailVerification, UserCreate, UserPublic, UserUpdate
from features.users.state import CallerDep, StateDep
from shared.db import OrmSession, ReadSession
from shared.problems import BadRequest, Conflict, TooManyRequests, responses
from shared.web.routing import Router

router = Router(tags=["users"])


@router.post(
    "/users",
    status_code=status.HTTP_201_CREATED,
    responses=responses(Conflict, TooManyRequests),
)
async def create(new: UserCreate, state: StateDep, caller: CallerDep) -> UserPublic:
    """Registers an account, and mails it a token that verifies its address."""
    await state.limits.register(caller.address)
    user = await accounts.register(state.database, state.passwords, state.links, new, caller)
    return UserPublic.model_validate(user)


@router.get("/users/me")
async def get_me(principal: Self, session: ReadSession) -> UserPublic:
    """The account that is asking."""
    return await accounts.read_user(session, principal.user_id)


@router.patch("/users/me")
async def update_me(changes: UserUpdate, principal: Self, session: OrmSession) -> UserPublic:
    """Changes the account that is asking."""
    user = await accounts.update_user(session, principal.user_id, changes)
    return UserPublic.model_validate(user)


@router.delete("/users/me", status_code=status.HTTP_204_NO_CONTENT, responses=responses(Conflict))
async def delete_me(person: Person, session: OrmSession, caller: CallerDep) -> None:
    """Deletes the account that is asking, and everything it owns."""
    await accounts.delete_user(session, person.user_id, person.user_id, caller)


@router.post(
    "/auth/email/verify",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(BadRequest, TooManyRequests),
)
async def verify_email(
    body: EmailVerification, state: StateDep, caller: CallerDep, session: OrmSession
) -> None:
    """Verifies an address with the token that was mailed to it."""
    await state.limits.reset(caller.address)
    await verification.verify_email(session, state.links, body.token, caller)


@router.post(
    "/users/me/verification",
    status_code=status.HTTP_202_ACCEPTED,
    responses=responses(TooManyRequests),
)
async def send_verification(
    state: StateDep, caller: CallerDep, principal: Self, session: OrmSession
) -> None:
    """Mails the token that verifies the address once more, unless that is done."""
    user = await accounts.get_user(session, principal.user_id)
    await state.limits.reset(caller.address, user.email)
    await verification.send_verification(session, state.links, user)
