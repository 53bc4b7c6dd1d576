"""The texts of mails."""

from typing import NamedTuple

from pydantic import HttpUrl


class MailText(NamedTuple):
    subject: str
    body: str


PASSWORD_CHANGED = MailText(
    "Your password was changed",
    "The password of your account was changed, and other sessions were ended.\n\n"
    "If it was not you, reset it now.\n",
)
API_KEY_CREATED = MailText(
    "An API key was made for your account",
    "A new API key can use your account.\n\n"
    "If it was not you, reset your password now: that deletes all keys.\n",
)
IDENTITY_LINKED = MailText(
    "Another sign-in was added to your account",
    "Somebody at a sign-in provider can now sign in to your account.\n\n"
    "If it was not you, reset your password now: that removes all such sign-ins.\n",
)
ACCESS_GRANTED = MailText(
    "An administrator changed what your account may do",
    "An administrator activated your account, or made it an administrator's.\n\n"
    "If you did not expect it, ask whoever runs the service.\n",
)


def verification_mail(token: str, frontend_url: HttpUrl | None) -> MailText:
    how = _how_to_use(token, frontend_url, page="verify-email", path="/auth/email/verify")
    return MailText(
        "Confirm your email address",
        f"Somebody, hopefully you, registered with this address.\n\nTo confirm it, {how}\n\n"
        "If it was not you, there is nothing to do.\n",
    )


def reset_mail(token: str, frontend_url: HttpUrl | None, minutes: int) -> MailText:
    how = _how_to_use(token, frontend_url, page="reset-password", path="/auth/password/reset")
    return MailText(
        "Reset your password",
        "Somebody, hopefully you, asked to reset the password of your account.\n\n"
        f"To choose a new one within {minutes} minutes, {how}\n\n"
        "If it was not you, there is nothing to do: your password stays as it is.\n",
    )


def _how_to_use(token: str, frontend_url: HttpUrl | None, *, page: str, path: str) -> str:
    """Returns a link to a page of the front end, or the bare token and the path to send it to.

    The host comes from `APP_FRONTEND_URL`, never from the request.
    """
    if frontend_url is None:
        return f"send this token to {path}:\n\n{token}"
    base_url = str(frontend_url).rstrip("/")
    return f"open\n\n{base_url}/{page}#token={token}"  # a fragment is in no server's log
