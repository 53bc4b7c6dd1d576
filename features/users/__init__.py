"""Accounts, authentication and permissions."""

from features.users.accounts.changes import account_changes
from features.users.accounts.handlers import find_user_id
from features.users.demo import DEMO_EMAIL

__all__ = ["DEMO_EMAIL", "account_changes", "find_user_id"]
