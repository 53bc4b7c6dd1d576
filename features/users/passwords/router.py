from fastapi import APIRouter, status

from features.users.client_info import CurrentClient
from features.users.dependencies import CurrentSession, StateDep
from features.users.passwords import handlers
from features.users.passwords.schemas import PasswordChange, PasswordForgotten, PasswordReset
from shared.db import OrmSession
from shared.problems import BadRequest, Conflict, TooManyRequests, responses

router = APIRouter(tags=["passwords"])


@router.put(
    "/users/me/password",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(Conflict, TooManyRequests),
)
async def change(
    body: PasswordChange, state: StateDep, client: CurrentClient, principal: CurrentSession
) -> None:
    """Changes the password, and ends every other session."""
    await state.rate_limits.sign_in(client.address, str(principal.user_id))
    await handlers.change_password(
        state.database,
        state.hasher,
        state.outbox,
        principal.user_id,
        principal.session_id,
        body.current_password,
        body.new_password,
        client,
    )


@router.post(
    "/auth/password/forgot",
    status_code=status.HTTP_202_ACCEPTED,
    responses=responses(TooManyRequests),
)
async def forget(
    body: PasswordForgotten, state: StateDep, client: CurrentClient, session: OrmSession
) -> None:
    """Mails a token that resets the password, if there is such an account."""
    await state.rate_limits.mail_token(client.address, body.email)
    await handlers.request_password_reset(session, body.email, client)


@router.post(
    "/auth/password/reset",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(BadRequest, TooManyRequests),
)
async def reset(body: PasswordReset, state: StateDep, client: CurrentClient) -> None:
    """Sets a new password with the token that was mailed, and ends every other way in: sessions,
    identities at providers, and, unless they are to be kept, API keys.

    A provider that has verified the same address is linked again by the next sign-in there."""
    await state.rate_limits.mail_token(client.address)
    await handlers.reset_password(
        state.database,
        state.hasher,
        state.outbox,
        state.mail_tokens,
        body.token,
        body.new_password,
        client,
        keep_api_keys=body.keep_api_keys,
    )
