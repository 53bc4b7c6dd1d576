"""Mail against a real SMTP server: committed mail is delivered, even after failures."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
import time_machine
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from fastapi import FastAPI
from httpx import AsyncClient
from pydantic import HttpUrl, SecretStr

from features.users.mail.delivery import MAX_ATTEMPTS, delete_dead_letters, deliver_mail
from features.users.passwords.tasks import send_password_resets
from features.users.settings import UsersSettings
from features.users.tests.conftest import EMAIL, Execute, by_password, register, tokens_of
from shared.settings import ConfigurationError, Settings, load_feature_settings
from shared.state import settings_of
from tests.kit import PASSWORD, SECRET_KEY, free_port, run_until_idle

FRONT = "https://app.example.com"


class Mailbox:
    """An SMTP server that stores received mail. It refuses mail while `refusal` is set."""

    def __init__(self) -> None:
        self.port = free_port()
        self.mails: list[EmailMessage] = []
        self.refusal: str | None = None

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802  # the name that aiosmtpd calls
        if self.refusal:
            return self.refusal
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 OK"

    @contextmanager
    def open(self) -> Iterator[None]:
        controller = Controller(self, hostname="0.0.0.0", port=self.port, ready_timeout=30)
        controller.start()
        try:
            yield
        finally:
            controller.stop()


@pytest.fixture
def closed_mailbox() -> Mailbox:
    """A mailbox whose server is not running."""
    return Mailbox()


@pytest.fixture
def mailbox(closed_mailbox: Mailbox) -> Iterator[Mailbox]:
    with closed_mailbox.open():
        yield closed_mailbox


@pytest.fixture
def settings(
    settings: Settings, closed_mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    monkeypatch.setenv("APP_FRONTEND_URL", FRONT)
    monkeypatch.setenv("APP_SMTP_URL", f"smtp://127.0.0.1:{closed_mailbox.port}")
    monkeypatch.setenv("APP_MAIL_FROM", "Tessera <api@example.com>")
    return settings


def set_smtp_url(app: FastAPI, smtp_url: str) -> None:
    settings = settings_of(app, UsersSettings)
    app.state.feature_settings[UsersSettings] = settings.model_copy(update={"smtp_url": smtp_url})


async def unsent_mail(execute: Execute) -> list[Any]:
    return await execute("SELECT * FROM outgoing_mail")


async def test_a_mail_arrives_and_its_link_works(
    app: FastAPI, anonymous: AsyncClient, mailbox: Mailbox, execute: Execute
) -> None:
    await register(anonymous)
    assert await run_until_idle(app, deliver_mail) == 1
    (mail,) = mailbox.mails
    assert mail["To"] == EMAIL
    assert mail["From"] == "Tessera <api@example.com>"
    assert mail["Message-ID"].endswith("@example.com>")
    assert mail["Auto-Submitted"] == "auto-generated"
    (link,) = [line for line in mail.get_content().splitlines() if line.startswith("https:")]
    assert link.startswith(f"{FRONT}/verify-email#token=")
    verified = await anonymous.post("/auth/email/verify", json={"token": link.split("=", 1)[1]})
    assert verified.status_code == 204
    assert await unsent_mail(execute) == []


async def test_the_link_leads_to_the_front_end_whatever_host_was_asked(
    app: FastAPI, anonymous: AsyncClient, mailbox: Mailbox
) -> None:
    await register(anonymous)
    forged = {"Host": "evil.example.com", "X-Forwarded-Host": "evil.example.com"}
    await anonymous.post("/auth/password/forgot", json={"email": EMAIL}, headers=forged)
    await run_until_idle(app, send_password_resets)
    await run_until_idle(app, deliver_mail)
    assert len(mailbox.mails) == 2
    for mail in mailbox.mails:
        assert "evil.example.com" not in mail.as_string()
        assert FRONT in mail.get_content()


async def test_a_mail_that_was_not_taken_waits_and_is_sent_later(
    app: FastAPI, anonymous: AsyncClient, mailbox: Mailbox, execute: Execute
) -> None:
    mailbox.refusal = "451 try later"
    await register(anonymous)
    await run_until_idle(app, deliver_mail)
    (mail,) = await unsent_mail(execute)
    assert mail["attempts"] == 1
    assert "try later" in mail["error"]
    assert await run_until_idle(app, deliver_mail) == 0, "not due yet"

    mailbox.refusal = None
    await execute("UPDATE outgoing_mail SET next_attempt_at = now()")
    await run_until_idle(app, deliver_mail)
    assert len(mailbox.mails) == 1


@pytest.mark.parametrize("hours", [-2, 2])
async def test_mail_is_due_by_the_clock_of_the_database(
    app: FastAPI, anonymous: AsyncClient, mailbox: Mailbox, execute: Execute, hours: int
) -> None:
    """By that of a process which is ahead it would wait, and behind use up all of its attempts."""
    mailbox.refusal = "451 try later"
    with time_machine.travel(timedelta(hours=hours), tick=True):
        await register(anonymous)
        await run_until_idle(app, deliver_mail)
    (mail,) = await unsent_mail(execute)
    assert mail["attempts"] == 1


async def test_a_mail_that_is_never_taken_is_parked(
    app: FastAPI, anonymous: AsyncClient, mailbox: Mailbox, execute: Execute
) -> None:
    mailbox.refusal = "550 no such mailbox"
    await register(anonymous)
    for _ in range(MAX_ATTEMPTS):
        await execute("UPDATE outgoing_mail SET next_attempt_at = now()")
        await run_until_idle(app, deliver_mail)
    (mail,) = await unsent_mail(execute)
    assert mail["attempts"] == MAX_ATTEMPTS
    assert mail["next_attempt_at"] is None


async def test_a_mail_that_cannot_be_written_does_not_hold_up_the_others(
    app: FastAPI, anonymous: AsyncClient, mailbox: Mailbox, execute: Execute
) -> None:
    await register(anonymous, "first@example.com")
    await execute("UPDATE outgoing_mail SET subject = E'two\\nlines'")
    await register(anonymous)
    await run_until_idle(app, deliver_mail)
    assert [mail["To"] for mail in mailbox.mails] == [EMAIL]
    (mail,) = await unsent_mail(execute)
    assert mail["attempts"] == 1


async def test_what_was_parked_long_ago_is_forgotten(
    app: FastAPI, anonymous: AsyncClient, execute: Execute
) -> None:
    await register(anonymous)
    await register(anonymous, "parked@example.com")
    await execute("UPDATE outgoing_mail SET next_attempt_at = NULL WHERE recipient ^@ 'parked'")
    for days, left in ((29, 2), (31, 1)):
        with time_machine.travel(timedelta(days=days), tick=True):
            await delete_dead_letters.run(app)
        assert len(await unsent_mail(execute)) == left


async def test_a_domain_in_unicode_is_written_in_ascii(
    app: FastAPI, anonymous: AsyncClient, mailbox: Mailbox
) -> None:
    await register(anonymous, "ada@bücher.example.com")
    await run_until_idle(app, deliver_mail)
    (mail,) = mailbox.mails
    assert mail["To"] == "ada@xn--bcher-kva.example.com"


async def test_a_server_elsewhere_that_does_not_encrypt_gets_no_mail(
    app: FastAPI, anonymous: AsyncClient, mailbox: Mailbox, execute: Execute
) -> None:
    elsewhere = f"smtp://127.0.0.2:{mailbox.port}"
    set_smtp_url(app, elsewhere)
    await register(anonymous)
    await run_until_idle(app, deliver_mail)
    assert mailbox.mails == []
    (mail,) = await unsent_mail(execute)
    assert "STARTTLS" in mail["error"]

    set_smtp_url(app, f"{elsewhere}?starttls=optional")
    await execute("UPDATE outgoing_mail SET next_attempt_at = now()")
    await run_until_idle(app, deliver_mail)
    assert len(mailbox.mails) == 1


async def test_a_server_that_is_away_loses_nothing(
    app: FastAPI, anonymous: AsyncClient, closed_mailbox: Mailbox, execute: Execute
) -> None:
    await register(anonymous)
    await run_until_idle(app, deliver_mail)
    assert len(await unsent_mail(execute)) == 1
    await execute("UPDATE outgoing_mail SET next_attempt_at = now()")
    with closed_mailbox.open():
        await run_until_idle(app, deliver_mail)
    assert len(closed_mailbox.mails) == 1


async def test_an_account_that_was_not_made_gets_no_mail(
    anonymous: AsyncClient, execute: Execute
) -> None:
    await register(anonymous)
    again = await anonymous.post("/users", json={"email": EMAIL, "password": PASSWORD})
    assert again.status_code == 409
    assert len(await unsent_mail(execute)) == 1


async def test_the_owner_is_told_of_a_changed_password(
    app: FastAPI, anonymous: AsyncClient, mailbox: Mailbox
) -> None:
    await register(anonymous)
    tokens = tokens_of(await by_password(anonymous))
    body = {"current_password": PASSWORD, "new_password": "another long enough password"}
    await anonymous.put("/users/me/password", json=body, headers=tokens.header)
    await run_until_idle(app, deliver_mail)
    assert mailbox.mails[-1]["Subject"] == "Your password was changed"


def production() -> Settings:
    return Settings(
        env="prod",
        database_url="postgresql://host/db",
        secret_key=SecretStr(SECRET_KEY),
        public_url=HttpUrl("https://api.example.com"),
    )


@pytest.mark.parametrize("smtp_url", ["log:", "smtps://ada:secret@smtp.example.com:465"])
def test_production_needs_a_mail_server_or_the_log(
    smtp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APP_SMTP_URL", raising=False)
    with pytest.raises(ConfigurationError, match=r"^APP_SMTP_URL is required when APP_ENV=prod; "):
        load_feature_settings(UsersSettings, production())
    monkeypatch.setenv("APP_SMTP_URL", smtp_url)
    assert load_feature_settings(UsersSettings, production()).smtp_url == smtp_url


def test_a_wrong_mail_server_is_told_in_a_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("APP_SMTP_URL", "smtp://h:x")
    with pytest.raises(ConfigurationError, match=r"^APP_SMTP_URL: Port could not be cast"):
        load_feature_settings(UsersSettings, production())
