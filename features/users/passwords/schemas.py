"""What clients send to set, change or reset a password."""

from typing import Annotated

from pydantic import AfterValidator, Field, StrictBool

from features.users.accounts.email_addresses import Email
from features.users.passwords.hashing import is_common
from features.users.schemas import Body, MailToken
from shared.types import DatabaseText


def _refuse_common(password: str) -> str:
    if is_common(password):
        raise ValueError("This is one of the most common passwords; please choose another")
    return password


Password = Annotated[DatabaseText, Field(min_length=8, max_length=128)]
NewPassword = Annotated[Password, AfterValidator(_refuse_common)]


class PasswordForgotten(Body):
    email: Email


class PasswordReset(Body):
    token: MailToken
    new_password: NewPassword
    keep_api_keys: StrictBool = Field(
        default=False, description="Whether machines go on with the API keys that they have"
    )


class PasswordChange(Body):
    current_password: Password
    new_password: NewPassword
