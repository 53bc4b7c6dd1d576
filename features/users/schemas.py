"""Types that the schemas of several parts share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shared.types import DatabaseText

MAX_NAME_LENGTH = 100

Name = Annotated[DatabaseText, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
MailToken = Annotated[DatabaseText, Field(min_length=1, max_length=1_000)]


class Body(BaseModel):
    """Base class of request bodies. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")
