"""What sessions look like to clients."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field


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
