"""What API keys look like to clients."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from features.users.schemas import Body, Name
from shared.types import DatabaseText, UtcDatetime


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
