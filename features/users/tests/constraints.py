"""For tests/architecture/test_constraints.py: account constraints that requests cannot violate."""

NEVER_VIOLATED = {
    "ck_users_role_known": "the schemas know the roles",
    "uq_api_keys_hash": "a key has 256 bits of entropy",
    "ix_sessions_family_hash": "the id of a family has 122 bits of entropy",
    "fk_refresh_tokens_session_id": "the session is locked, or made in the same transaction",
}
"""Constraints, each with the reason."""
