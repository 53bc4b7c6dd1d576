from fastapi import status

from features.users.handlers import passwords
from features.users.router.identity import Person
from features.users.schemas import PasswordChange, PasswordForgotten, PasswordReset
from features.users.state import CallerDep, StateDep
from shared.db import OrmSession
from shared.problems import BadRequest, Conflict, TooManyRequests, responses
from shared.web.routing import Router

router = Router(tags=["passwords"])


@router.put(
    "/users/me/password",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(Conflict, TooManyRequests),
)
async def change(body: PasswordChange, state: StateDep, caller: CallerDep, person: Person) -> None:
    """Changes the password, and ends every other session."""
    await state.limits.sign_in(caller.address, str(person.user_id))
    await passwords.change_password(
        state.database,
        state.passwords,
        state.links.outbox,
        person.user_id,
        person.session_id,
        body.current_password,
        body.new_password,
        caller,
    )


@router.post(
    "/auth/password/forgot",
    status_code=status.HTTP_202_ACCEPTED,
    responses=responses(TooManyRequests),
)
async def forget(
    body: PasswordForgotten, state: StateDep, caller: CallerDep, session: OrmSession
) -> None:
    """Mails a token that resets the password, if there is such an account."""
    await state.limits.reset(caller.address, body.email)
    await passwords.request_reset(session, body.email, caller)


@router.post(
    "/auth/password/reset",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(BadRequest, TooManyRequests),
)
async def reset(body: PasswordReset, state: StateDep, caller: CallerDep) -> None:
    """Sets a new password with the token that was mailed, and ends every session."""
    await state.limits.reset(caller.address)
    await passwords.reset_password(
        state.database, state.passwords, state.links, body.token, body.new_password, caller
    )
