"""What administrators send and see."""

from typing import Annotated

from pydantic import MISSING, ConfigDict, Field, StrictBool

from features.users.accounts.schemas import UserPublic
from features.users.accounts.tables import Role
from features.users.schemas import Body, Name
from shared.types import DatabaseText
from shared.web.pagination import Page, PageQuery, Sort


class UserAdminUpdate(Body):
    """A field that is absent stays as it is; `null` clears the name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"is_active": False}]})

    name: Name | MISSING | None = MISSING
    role: Role | MISSING = MISSING
    is_active: StrictBool | MISSING = MISSING


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
