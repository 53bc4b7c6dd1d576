"""Answers of the token endpoint."""

from typing import Literal

from pydantic import BaseModel, Field


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
