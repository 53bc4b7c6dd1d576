"""What accounts look like to clients."""

from datetime import datetime
from uuid import UUID

from pydantic import MISSING, BaseModel, ConfigDict, model_validator

from features.users.accounts.email_addresses import Email
from features.users.accounts.tables import Role
from features.users.passwords.schemas import NewPassword
from features.users.schemas import Body, MailToken, Name


class UserCreate(Body):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"email": "ada@example.com", "password": "correct horse battery"}]
        }
    )

    email: Email
    password: NewPassword
    name: Name | None = None

    @model_validator(mode="after")
    def password_is_not_the_email(self) -> "UserCreate":
        if self.password.lower() in {self.email, self.email.partition("@")[0]}:
            raise ValueError("The password must not be the email")
        return self


class UserUpdate(Body):
    """A field that is absent stays as it is; `null` clears."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Ada Lovelace"}]})

    name: Name | MISSING | None = MISSING


class UserPublic(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str
    email_verified: bool
    name: str | None
    role: Role
    is_active: bool
    created_at: datetime
    updated_at: datetime


class EmailVerification(Body):
    token: MailToken
