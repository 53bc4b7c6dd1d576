"""Sends the mails of the outbox by SMTP.

Delivery is at-least-once: a crash between the SMTP server's 250 and the COMMIT sends the mail
twice, with the same Message-ID.
"""

from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import formatdate, parseaddr
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import aiosmtplib
import structlog
from email_validator import validate_email
from fastapi import FastAPI
from sqlalchemy import delete, func, text
from sqlmodel import col, select

from features.users.mail.outbox import MAIL_CHANNEL, body_encryption
from features.users.mail.tables import OutgoingMail
from features.users.settings import UsersSettings
from shared.db import database_of
from shared.db.tables import first_uuid7
from shared.state import settings_of
from shared.tasks import PeriodicTask, Task

SEND_TIMEOUT_SECONDS = 20.0
FIRST_RETRY = timedelta(seconds=15)  # doubles with each attempt
MAX_ATTEMPTS = 9  # over about an hour; then the mail is a dead letter
DEAD_LETTER_LIFETIME = timedelta(days=30)

log = structlog.get_logger(__name__)


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
            encryption = body_encryption(app.state.settings.secret())
            body = encryption.decrypt(mail.encrypted_body).decode()
            await _send(settings_of(app, UsersSettings), mail, body)
        except Exception as error:  # of any kind: the next mails must not wait for this one
            _schedule_retry(mail, error)
        else:
            await session.delete(mail)
        return 1


async def _send(settings: UsersSettings, mail: OutgoingMail, body: str) -> None:
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
    recipient = validate_email(mail.recipient, check_deliverability=False)
    message["To"] = recipient.ascii_email or mail.recipient  # the domain in ASCII (IDNA)
    message["Subject"] = mail.subject
    message["Date"] = formatdate()
    message["Message-ID"] = f"<{mail.id}@{parseaddr(sender)[1].partition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies
    message.set_content(body)
    return message


def _schedule_retry(mail: OutgoingMail, error: Exception) -> None:
    """Sets the time of the next attempt, or none after the last: the mail is then a dead letter."""
    mail.attempts += 1
    mail.error = repr(error)[:1_000]
    if mail.attempts >= MAX_ATTEMPTS:
        mail.next_attempt_at = None
        log.error("mail_parked", mail_id=str(mail.id), error=mail.error)
    else:
        pause = FIRST_RETRY * 2 ** (mail.attempts - 1)
        mail.next_attempt_at = func.clock_timestamp() + pause
        log.warning("mail_retry_scheduled", mail_id=str(mail.id), error=mail.error)


async def _delete_dead_letters(app: FastAPI) -> None:
    """Deletes dead letters after 30 days: their tokens have expired, but they hold addresses."""
    oldest_id = first_uuid7(datetime.now(UTC) - DEAD_LETTER_LIFETIME)
    dead_letters = delete(OutgoingMail).where(col(OutgoingMail.next_attempt_at).is_(None))
    async with database_of(app).orm_transaction() as session:
        await session.exec(dead_letters.where(col(OutgoingMail.id) < oldest_id))


BACKLOG = text("""
SELECT count(next_attempt_at), count(*) - count(next_attempt_at),
    greatest(0, extract(epoch FROM clock_timestamp() - min(next_attempt_at)))
FROM outgoing_mail
""")

deliver_mail = Task(
    name="deliver_mail", run=_deliver, every=5, channel=MAIL_CHANNEL, backlog=BACKLOG
)
delete_dead_letters = PeriodicTask(name="delete_dead_letters", run=_delete_dead_letters, every=3600)
