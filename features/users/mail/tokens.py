"""Signed, short-lived tokens that are sent by mail."""

from uuid import UUID

from itsdangerous import BadSignature

from features.users.settings import UsersSettings
from shared.crypto import signer
from shared.problems import BadRequest


class MailTokens:
    """Writes and reads the tokens in mails.

    A reset token is bound to the current password, so that it works once, and to the last end of
    all access, so that none works again in a database that was restored to an earlier time. A
    verification token is bound to the address, and using it again changes nothing.
    """

    def __init__(self, secret: str, settings: UsersSettings) -> None:
        self._reset = signer(secret, "password reset")
        self._reset_seconds = settings.password_reset_lifetime
        self._verification = signer(secret, "email verification")
        self._verification_seconds = settings.email_verification_lifetime

    def write_reset(self, user_id: UUID, fingerprint: str) -> str:
        return str(self._reset.dumps([user_id.hex, fingerprint]))

    def read_reset(self, token: str) -> tuple[UUID, str]:
        """Returns the account's id and the fingerprint of what the token is bound to.

        Raises:
            BadRequest: the signature is not ours, or the token has expired.
        """
        try:
            user_id, fingerprint = self._reset.loads(token, max_age=self._reset_seconds)
        except BadSignature:
            raise BadRequest("This reset token is not valid, or no longer") from None
        return UUID(user_id), fingerprint

    def write_verification(self, user_id: UUID, email: str) -> str:
        return str(self._verification.dumps([user_id.hex, email]))

    def read_verification(self, token: str) -> tuple[UUID, str]:
        """Returns the account's id and the address to verify.

        Raises:
            BadRequest: the signature is not ours, or the token has expired.
        """
        try:
            user_id, email = self._verification.loads(token, max_age=self._verification_seconds)
        except BadSignature:
            raise BadRequest("This verification token is not valid, or no longer") from None
        return UUID(user_id), email
