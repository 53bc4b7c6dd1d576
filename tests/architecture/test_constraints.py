"""What a constraint says no to is told in words: each is mapped, or no request can violate it."""

from itertools import chain

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Table, UniqueConstraint
from sqlmodel import SQLModel

from shared.features import find_features

IN_WORDS = (UniqueConstraint, ForeignKeyConstraint, CheckConstraint)
UNREACHABLE = {
    "ck_items_price_positive": "the schemas refuse such a price",
    "ck_users_role_known": "the schemas know the roles",
    "uq_api_keys_hash": "of 256 random bits",
    "fk_refresh_tokens_session_id": "the session is locked, or made in the same transaction",
    "uq_search_models_provider_name_dimension": "written by ON CONFLICT, and by tasks alone",
    "uq_search_models_active": "written by tasks alone",
    "fk_search_embeddings_item_id": "written by tasks alone",
    "fk_search_embeddings_model_id": "written by tasks alone",
}
"""Constraints that no request can violate, each with the reason."""


def names(table: Table) -> list[str]:
    constraints = [each for each in table.constraints if isinstance(each, IN_WORDS)]
    return [str(each.name) for each in (*constraints, *(i for i in table.indexes if i.unique))]


def test_each_constraint_has_its_words() -> None:
    mapped = {name for feature in find_features() for name in feature.constraints}
    for name in chain(*map(names, SQLModel.metadata.sorted_tables)):
        assert (name in mapped) != (name in UNREACHABLE), (
            f"say in Feature(constraints=…) what the violation of {name} means to the client, or in"
            " UNREACHABLE why no request can violate it"
        )
