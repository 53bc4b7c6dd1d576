"""The background task of passwords."""

from fastapi import FastAPI

from features.users.passwords.handlers import RESET_CHANNEL, mail_reset_tokens
from features.users.state import state_of
from shared.tasks import Task


async def _send_password_resets(app: FastAPI) -> int:
    state = state_of(app)
    async with state.database.orm_transaction() as session:
        return await mail_reset_tokens(session, state.outbox)


send_password_resets = Task(
    name="send_password_resets", run=_send_password_resets, every=5, channel=RESET_CHANNEL
)
