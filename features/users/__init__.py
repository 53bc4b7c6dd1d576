"""Accounts: who they are, and how they prove it."""

from features.users.demo import add_demo_account
from features.users.handlers import find_user_id
from features.users.router import authenticator, router
from shared.errors import Conflict
from shared.features import Feature

__all__ = ["feature", "find_user_id"]

feature = Feature(
    name="users",
    router=router,
    authenticator=authenticator,
    scopes={"users:self": "Read and change your own account"},
    constraints={"uq_users_email": Conflict("An account with this email already exists")},
    demo=add_demo_account,
)
