from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    model_validator,
)

from features.users.emails import Email
from features.users.passwords import is_common
from features.users.tables import EventKind, Role
from shared.types import DatabaseText, UtcDatetime
from shared.web.pagination import Page, PageQuery, Sort


def _uncommon(password: str) -> str:
    if is_common(password):
        raise ValueError("This is one of the most common passwords; please choose another")
    return password


Name = Annotated[DatabaseText, Field(min_length=1, max_length=100)]
Password = Annotated[DatabaseText, Field(min_length=8, max_length=128)]
NewPassword = Annotated[Password, AfterValidator(_uncommon)]
MailToken = Annotated[DatabaseText, Field(min_length=1, max_length=1_000)]


class Body(BaseModel):
    """Base class of request bodies. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


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
    """What is absent stays as it is; `null` clears."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Ada Lovelace"}]})

    name: Name | None = None


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


class TokenResponse(BaseModel):
    """A successful answer of the token endpoint (RFC 6749, section 5.1)."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"
    expires_in: int = Field(description="Seconds until the access token expires")
    refresh_token: str = Field(description="Good for one use; each answer brings the next")
    scope: str


class TokenError(BaseModel):
    """An error of the token endpoint (RFC 6749, section 5.2)."""

    error: Literal["invalid_request", "invalid_grant", "unsupported_grant_type", "invalid_scope"]
    error_description: str


class SessionPublic(BaseModel):
    """A login on one device."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    address: str = Field(examples=["203.0.113.7"])
    user_agent: str = Field(description="What the device says it is")
    created_at: datetime
    last_used_at: datetime = Field(description="The last sign-in or refresh")
    expires_at: datetime
    current: bool = Field(default=False, description="Whether it is the one that asks")


class SessionList(BaseModel):
    items: list[SessionPublic]


class EmailVerification(Body):
    token: MailToken


class PasswordForgotten(Body):
    email: Email


class PasswordReset(Body):
    token: MailToken
    new_password: NewPassword


class PasswordChange(Body):
    current_password: Password
    new_password: NewPassword


class ApiKeyCreate(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "nightly import", "scopes": ["items:write"]}]}
    )

    name: Name
    scopes: Annotated[list[DatabaseText], Field(min_length=1, max_length=50)]
    expires_at: UtcDatetime | None = None


class ApiKeyPublic(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str
    hint: str = Field(description="How the key begins", examples=["tsk_q3Xz"])
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute")


class ApiKeyCreated(ApiKeyPublic):
    key: str = Field(description="The key itself. It is shown this once, and kept nowhere")


class ApiKeyList(BaseModel):
    items: list[ApiKeyPublic]


class EventPublic(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    kind: EventKind
    address: str | None = Field(description="Null where an administrator did it")
    user_agent: str | None
    detail: str | None
    created_at: datetime


class EventSort(Sort):
    """A column to sort by; `-` for descending."""

    CREATED_AT = "created_at"
    CREATED_AT_DESC = "-created_at"


class EventQuery(PageQuery):
    kind: EventKind | None = None
    sort: EventSort = EventSort.CREATED_AT_DESC


class EventPage(Page[EventPublic]):
    """A page of what happened to your account."""


class UserAdminUpdate(Body):
    """What is absent stays as it is; `null` clears the name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"is_active": False}]})

    name: Name | None = None
    role: Role = Role.USER
    is_active: StrictBool = True


class UserSort(Sort):
    """A column to sort by; `-` for descending."""

    CREATED_AT = "created_at"
    CREATED_AT_DESC = "-created_at"
    EMAIL = "email"
    EMAIL_DESC = "-email"


class UserQuery(PageQuery):
    q: Annotated[
        DatabaseText | None,
        Field(min_length=1, max_length=200, description="Part of email or name"),
    ] = None
    role: Role | None = None
    is_active: bool | None = None
    sort: UserSort = UserSort.CREATED_AT_DESC


class UserPage(Page[UserPublic]):
    """A page of accounts."""


class Authorization(BaseModel):
    """Where the browser is to go."""

    authorization_url: str


class IdentityPublic(BaseModel):
    """Somebody at an OpenID provider who may sign in to the account."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    issuer: str = Field(examples=["https://accounts.example.com"])
    email: str | None
    created_at: datetime


class IdentityList(BaseModel):
    items: list[IdentityPublic]
