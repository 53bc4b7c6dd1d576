"""Signed, short-lived tokens, and the mails that carry them."""

from uuid import UUID

from itsdangerous import BadSignature

from features.users.settings import UsersSettings
from shared.crypto import signer
from shared.mail import Outbox
from shared.problems import BadRequest

MAX_LENGTH = 1_000


class Links:
    """Writes and reads the tokens in mails.

    A reset token is bound to the current password, so that it works once. A verification token
    is bound to the address, and using it again changes nothing.
    """

    def __init__(self, secret: str, settings: UsersSettings, outbox: Outbox) -> None:
        self.outbox = outbox
        self._reset = signer(secret, "password reset")
        self._verify = signer(secret, "email verification")
        self._settings = settings

    def write_reset(self, user_id: UUID, fingerprint: str) -> str:
        return str(self._reset.dumps([user_id.hex, fingerprint]))

    def read_reset(self, token: str) -> tuple[UUID, str]:
        """Returns the account's id and the fingerprint of its password hash.

        Raises:
            BadRequest: the signature is not ours, or the token has expired.
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
        """Returns the account's id and the address to verify.

        Raises:
            BadRequest: the signature is not ours, or the token has expired.
        """
        lifetime = self._settings.email_verification_lifetime
        try:
            user_id, email = self._verify.loads(token, max_age=lifetime)
        except BadSignature:
            raise BadRequest("This verification token is not valid, or no longer") from None
        return UUID(user_id), email

    def verification_mail(self, user_id: UUID, email: str) -> tuple[str, str]:
        """Returns the subject and the body."""
        way = self._way(
            "verify-email", "/auth/email/verify", self.write_verification(user_id, email)
        )
        return "Confirm your email address", (
            f"Somebody, hopefully you, registered with this address.\n\nTo confirm it, {way}\n\n"
            "If it was not you, there is nothing to do.\n"
        )

    def reset_mail(self, user_id: UUID, fingerprint: str) -> tuple[str, str]:
        """Returns the subject and the body."""
        token = self.write_reset(user_id, fingerprint)
        way = self._way("reset-password", "/auth/password/reset", token)
        minutes = self._settings.password_reset_lifetime // 60
        return "Reset your password", (
            "Somebody, hopefully you, asked to reset the password of your account.\n\n"
            f"To choose a new one within {minutes} minutes, {way}\n\n"
            "If it was not you, there is nothing to do: your password stays as it is.\n"
        )

    def _way(self, page: str, path: str, token: str) -> str:
        """Returns a link to the front end, or the bare token and the path to send it to.

        The host comes from `APP_FRONTEND_URL`, never from the request.
        """
        if self._settings.frontend_url is None:
            return f"send this token to {path}:\n\n{token}"
        front = str(self._settings.frontend_url).rstrip("/")
        return f"open\n\n{front}/{page}#token={token}"  # a fragment is in no server's log
