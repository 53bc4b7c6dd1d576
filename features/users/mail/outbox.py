"""Transactional outbox: a mail is a row, written in the transaction of the change that it reports.

A task sends it after the commit (delivery.py). The body is encrypted while it waits, since it may
give access to an account.
"""

from uuid import UUID

from cryptography.fernet import Fernet
from sqlalchemy import delete, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.mail.tables import OutgoingMail
from features.users.mail.templates import (
    ACCESS_GRANTED,
    API_KEY_CREATED,
    IDENTITY_LINKED,
    PASSWORD_CHANGED,
    MailText,
    reset_mail,
    verification_mail,
)
from features.users.mail.tokens import MailTokens
from features.users.settings import UsersSettings
from shared.crypto import cipher
from shared.db import write_session_of

MAIL_CHANNEL = "outgoing_mail"


def body_encryption(secret: str) -> Fernet:
    return cipher(secret, "outgoing mail")


async def delete_mail(session: AsyncSession, recipient: str) -> None:
    """Deletes the waiting mails to this address, except one that is being sent."""
    waiting = select(col(OutgoingMail.id)).where(col(OutgoingMail.recipient) == recipient)
    idle = waiting.with_for_update(skip_locked=True)
    await session.exec(delete(OutgoingMail).where(col(OutgoingMail.id).in_(idle)))


class Outbox:
    """Adds mails to the transaction of a session."""

    def __init__(self, secret: str, tokens: MailTokens, settings: UsersSettings) -> None:
        self._encryption = body_encryption(secret)
        self._tokens = tokens
        self._frontend_url = settings.frontend_url
        self._reset_minutes = settings.password_reset_lifetime // 60

    async def add_verification(self, session: AsyncSession, user_id: UUID, email: str) -> None:
        token = self._tokens.write_verification(user_id, email)
        await self._add(session, email, verification_mail(token, self._frontend_url))

    async def add_password_reset(
        self, session: AsyncSession, user_id: UUID, email: str, fingerprint: str
    ) -> None:
        token = self._tokens.write_reset(user_id, fingerprint)
        text = reset_mail(token, self._frontend_url, self._reset_minutes)
        await self._add(session, email, text)

    async def add_password_changed(self, session: AsyncSession, email: str) -> None:
        await self._add(session, email, PASSWORD_CHANGED)

    async def add_api_key_created(self, session: AsyncSession, email: str) -> None:
        await self._add(session, email, API_KEY_CREATED)

    async def add_identity_linked(self, session: AsyncSession, email: str) -> None:
        await self._add(session, email, IDENTITY_LINKED)

    async def add_access_granted(self, session: AsyncSession, email: str) -> None:
        await self._add(session, email, ACCESS_GRANTED)

    async def _add(self, session: AsyncSession, recipient: str, text: MailText) -> None:
        mail = OutgoingMail(
            recipient=recipient,
            subject=text.subject,
            encrypted_body=self._encryption.encrypt(text.body.encode()),
        )
        session.add(mail)
        write_session_of(session).notify(MAIL_CHANNEL)
