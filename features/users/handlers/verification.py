"""Verification of email addresses."""

from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.access import Caller
from features.users.handlers.events import record
from features.users.links import Links
from features.users.tables import EventKind, User
from shared.problems import BadRequest


async def send_verification(session: AsyncSession, links: Links, user: User) -> None:
    """Mails a token that verifies the address, unless it is verified already."""
    if not user.email_verified:
        mail = links.verification_mail(user.id, user.email)
        await links.outbox.put(session, user.email, *mail)


async def verify_email(session: AsyncSession, links: Links, token: str, caller: Caller) -> None:
    """Verifies the address of the account.

    Raises:
        BadRequest: the token is not valid, or is for an address that the account no longer has.
    """
    user_id, email = links.read_verification(token)
    user = await session.get(User, user_id, with_for_update={"key_share": True})
    if user is None or user.email != email:
        raise BadRequest("This verification token is not valid, or no longer")
    if not user.email_verified:
        user.email_verified = True
        await record(session, EventKind.EMAIL_VERIFIED, user.id, caller)
