from uuid import UUID

from sqlmodel import Field

from shared.tables import Timestamped, new_id


class User(Timestamped, table=True):
    """An account. The email is kept in lower case, so that it is one whatever its case."""

    __tablename__ = "users"

    id: UUID = Field(default_factory=new_id, primary_key=True)
    email: str = Field(unique=True)
    name: str | None = None
    password_hash: str
