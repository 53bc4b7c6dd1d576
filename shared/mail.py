"""Outgoing mail in a transactional outbox.

A mail is a row, written in the transaction of the change that it reports; a task sends it.

Delivery is at-least-once: a crash between the SMTP server's 250 and the COMMIT sends the mail
twice, with the same Message-ID. The body is encrypted while it waits, since it may give access
to an account.
"""

from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import formatdate, parseaddr
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit
from uuid import UUID

import aiosmtplib
import structlog
from email_validator import validate_email
from fastapi import FastAPI
from sqlalchemy import LargeBinary, delete, func, text
from sqlmodel import Field, SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.crypto import cipher
from shared.db import database_of
from shared.db.tables import uuid7
from shared.settings import Settings
from shared.tasks import Task

CHANNEL = "outgoing_mail"
SEND_TIMEOUT_SECONDS = 20.0
FIRST_RETRY = timedelta(seconds=15)  # doubles with each attempt
MAX_ATTEMPTS = 9  # over about an hour; then the mail is parked as a dead letter
PARKED = timedelta(days=30)

log = structlog.get_logger(__name__)


class OutgoingMail(SQLModel, table=True):
    """A mail that has not been sent. `next_attempt_at` is null once it is parked (a dead letter,
    for a person to look at). The body is encrypted under a key derived from `APP_SECRET_KEY`."""

    __tablename__ = "outgoing_mail"

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    recipient: str
    subject: str
    sealed_body: bytes = Field(sa_type=LargeBinary)
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    next_attempt_at: datetime | None = Field(
        default=None, index=True, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )
    error: str | None = None


class Outbox:
    """Writes mails to the outbox, and decrypts their bodies."""

    def __init__(self, secret: str) -> None:
        self._seal = cipher(secret, "outgoing mail")

    async def put(self, session: AsyncSession, recipient: str, subject: str, body: str) -> None:
        """Adds a mail to the transaction; it is sent after the commit."""
        mail = OutgoingMail(
            recipient=recipient,
            subject=subject,
            sealed_body=self._seal.encrypt(body.encode()),
            next_attempt_at=datetime.now(UTC),
        )
        session.add(mail)
        await session.exec(select(func.pg_notify(CHANNEL, "")))

    def open(self, sealed_body: bytes) -> str:
        """Decrypts the body of a mail.

        Raises:
            InvalidToken: it was encrypted under another `APP_SECRET_KEY`.
        """
        return self._seal.decrypt(sealed_body).decode()


async def _deliver(app: FastAPI) -> int:
    due = (
        select(OutgoingMail)
        .where(col(OutgoingMail.next_attempt_at) <= func.clock_timestamp())
        .order_by(col(OutgoingMail.next_attempt_at))
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    async with database_of(app).orm_transaction() as session:
        mail = (await session.exec(due)).one_or_none()
        if mail is None:
            return 0
        try:
            await _send(app.state.settings, mail)
        except Exception as error:  # of any kind: the next mails must not wait for this one
            _postpone(mail, error)
        else:
            await session.delete(mail)
        return 1


async def _send(settings: Settings, mail: OutgoingMail) -> None:
    body = Outbox(settings.secret()).open(mail.sealed_body)
    if settings.smtp_url is None or settings.smtp_url == "log:":
        log.info("mail", to=mail.recipient, subject=mail.subject, body=body)
        return
    server = urlsplit(settings.smtp_url)
    await aiosmtplib.send(
        _message(settings.mail_from, mail, body),
        hostname=server.hostname,
        port=server.port,
        username=unquote(server.username) if server.username else None,
        password=unquote(server.password) if server.password else None,
        use_tls=server.scheme == "smtps",
        start_tls=True if _needs_starttls(server) else None,
        timeout=SEND_TIMEOUT_SECONDS,
    )


def _needs_starttls(server: SplitResult) -> bool:
    """Returns whether STARTTLS is required, so that a server without it gets no mail.

    It is not with `smtps`, for a server on this machine, or with `?starttls=optional`.
    """
    if server.scheme == "smtps" or server.hostname in {"localhost", "127.0.0.1", "::1"}:
        return False
    return parse_qs(server.query).get("starttls") != ["optional"]


def _message(sender: str, mail: OutgoingMail, body: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = sender
    known = validate_email(mail.recipient, check_deliverability=False)
    message["To"] = known.ascii_email or mail.recipient  # the domain in ASCII (IDNA)
    message["Subject"] = mail.subject
    message["Date"] = formatdate()
    message["Message-ID"] = f"<{mail.id}@{parseaddr(sender)[1].partition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies
    message.set_content(body)
    return message


def _postpone(mail: OutgoingMail, error: Exception) -> None:
    mail.attempts += 1
    mail.error = repr(error)[:1_000]
    parked = mail.attempts >= MAX_ATTEMPTS
    wait = FIRST_RETRY * 2 ** (mail.attempts - 1)
    mail.next_attempt_at = None if parked else datetime.now(UTC) + wait
    tell = log.error if parked else log.warning
    tell("mail_parked" if parked else "mail_postponed", mail_id=str(mail.id), error=mail.error)


async def _forget_parked(app: FastAPI) -> int:
    """Deletes mails parked 30 days ago: their tokens have expired, but they hold addresses."""
    before = round((datetime.now(UTC) - PARKED).timestamp() * 1_000)
    oldest = UUID(int=before << 80)  # a UUIDv7 begins with its time in ms (RFC 9562, section 5.7)
    parked = delete(OutgoingMail).where(col(OutgoingMail.next_attempt_at).is_(None))
    async with database_of(app).orm_transaction() as session:
        await session.exec(parked.where(col(OutgoingMail.id) < oldest))
    return 0


BACKLOG = text("""
SELECT count(next_attempt_at), count(*) - count(next_attempt_at),
    greatest(0, extract(epoch FROM clock_timestamp() - min(next_attempt_at)))
FROM outgoing_mail
""")

deliver_mail = Task(name="deliver_mail", run=_deliver, every=5, channel=CHANNEL, backlog=BACKLOG)
forget_parked_mail = Task(name="forget_parked_mail", run=_forget_parked, every=3600)
