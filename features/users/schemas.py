from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, EmailStr, Field

from shared.schemas import Text

Email = Annotated[EmailStr, AfterValidator(str.lower)]
Name = Annotated[Text, Field(min_length=1, max_length=100)]
Password = Annotated[Text, Field(min_length=8, max_length=128)]


class UserCreate(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"email": "ada@example.com", "password": "correct horse battery"}]
        }
    )

    email: Email
    password: Password
    name: Name | None = None


class UserUpdate(BaseModel):
    """What is absent stays as it is; `null` clears."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Ada Lovelace"}]})

    name: Name | None = None


class UserPublic(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str
    name: str | None
    created_at: datetime
    updated_at: datetime


class TokenResponse(BaseModel):
    """A successful answer of the token endpoint (RFC 6749, section 5.1)."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"
    expires_in: int = Field(description="Seconds until the access token expires")
    scope: str


class TokenError(BaseModel):
    """An error of the token endpoint (RFC 6749, section 5.2)."""

    error: Literal["invalid_request", "invalid_grant", "unsupported_grant_type", "invalid_scope"]
    error_description: str
