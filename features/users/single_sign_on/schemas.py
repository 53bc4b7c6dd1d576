"""What identities at OpenID providers look like to clients."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field


class Authorization(BaseModel):
    """Where the browser is to go."""

    authorization_url: str


class IdentityPublic(BaseModel):
    """An identity at an OpenID provider that may sign in to the account."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    issuer: str = Field(examples=["https://accounts.example.com"])
    email: str | None
    created_at: datetime


class IdentityList(BaseModel):
    items: list[IdentityPublic]
