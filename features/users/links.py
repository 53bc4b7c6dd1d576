"""What mails carry: signed, short-lived tokens, and where they lead."""

from uuid import UUID

from itsdangerous import BadSignature

from features.users.settings import UsersSettings
from shared.errors import BadRequest
from shared.mail import Outbox
from shared.sealing import signer

MAX_LENGTH = 1_000


class Links:
    """Writes and reads the tokens in mails. Each is bound to what its use changes, so that it
    is good for one use: a reset to the password, a verification to the address."""

    def __init__(self, secret: str, settings: UsersSettings, outbox: Outbox) -> None:
        self.outbox = outbox
        self._reset = signer(secret, "password reset")
        self._verify = signer(secret, "email verification")
        self._settings = settings

    def write_reset(self, user_id: UUID, fingerprint: str) -> str:
        return str(self._reset.dumps([user_id.hex, fingerprint]))

    def read_reset(self, token: str) -> tuple[UUID, str]:
        """
        Raises:
            BadRequest: it is not one of ours, or too old.
        """
        lifetime = self._settings.password_reset_lifetime
        try:
            user_id, fingerprint = self._reset.loads(token, max_age=lifetime)
        except BadSignature:
            raise BadRequest("This reset token is not valid, or no longer") from None
        return UUID(user_id), fingerprint

    def write_verification(self, user_id: UUID, email: str) -> str:
        return str(self._verify.dumps([user_id.hex, email]))

    def read_verification(self, token: str) -> tuple[UUID, str]:
        """
        Raises:
            BadRequest: it is not one of ours, or too old.
        """
        lifetime = self._settings.email_verification_lifetime
        try:
            user_id, email = self._verify.loads(token, max_age=lifetime)
        except BadSignature:
            raise BadRequest("This verification token is not valid, or no longer") from None
        return UUID(user_id), email

    def verification_mail(self, user_id: UUID, email: str) -> tuple[str, str]:
        """Subject and body."""
        way = self._way(
            "verify-email", "/auth/email/verify", self.write_verification(user_id, email)
        )
        return "Confirm your email address", (
            f"Somebody, hopefully you, registered with this address.\n\nTo confirm it, {way}\n\n"
            "If it was not you, there is nothing to do.\n"
        )

    def reset_mail(self, user_id: UUID, fingerprint: str) -> tuple[str, str]:
        """Subject and body."""
        token = self.write_reset(user_id, fingerprint)
        way = self._way("reset-password", "/auth/password/reset", token)
        minutes = self._settings.password_reset_lifetime // 60
        return "Reset your password", (
            "Somebody, hopefully you, asked to reset the password of your account.\n\n"
            f"To choose a new one within {minutes} minutes, {way}\n\n"
            "If it was not you, there is nothing to do: your password stays as it is.\n"
        )

    def _way(self, page: str, path: str, token: str) -> str:
        """The link, to the front end alone: never to whatever host the request named."""
        if self._settings.frontend_url is None:
            return f"send this token to {path}:\n\n{token}"
        front = str(self._settings.frontend_url).rstrip("/")
        return f"open\n\n{front}/{page}#token={token}"  # a fragment is in no server's log
