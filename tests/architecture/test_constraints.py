"""Each constraint has an error message for clients, unless no request can violate it."""

from collections.abc import Iterator

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Table, UniqueConstraint
from sqlmodel import SQLModel

from app.discovery import find_features
from shared.db.tables import table_owners
from tests.declarations import declared_by_feature

IN_WORDS = (UniqueConstraint, ForeignKeyConstraint, CheckConstraint)


def names_in(table: Table) -> list[str]:
    """Returns the constraints that a request may violate; a primary key is seldom one of them."""
    constraints = [each for each in table.constraints if isinstance(each, IN_WORDS)]
    return [str(each.name) for each in (*constraints, *(i for i in table.indexes if i.unique))]


def owner_by_constraint() -> dict[str, str]:
    owner = table_owners()
    return {
        name: owner[table.name]
        for table in SQLModel.metadata.sorted_tables
        for name in names_in(table)
    }


def declarations() -> Iterator[tuple[str, str, str]]:
    """Yields the feature, the constraint, and the place where it is declared."""
    for feature in find_features():
        for name in feature.constraints:
            yield feature.name, name, f"Feature(constraints=…) of {feature.name}"
    for owner, name, _ in declared_by_feature("constraints", "NEVER_VIOLATED"):
        yield owner, name, f"NEVER_VIOLATED in features/{owner}/tests/constraints.py"


def test_each_constraint_is_declared_once() -> None:
    places: dict[str, list[str]] = {}
    for _, name, place in declarations():
        places.setdefault(name, []).append(place)
    for name, owner in owner_by_constraint().items():
        found = places.get(name, [])
        assert found, (
            f"say in Feature(constraints=…) of {owner} what the violation of {name} means to the"
            f" client, or in NEVER_VIOLATED in features/{owner}/tests/constraints.py why no request"
            " can violate it"
        )
        assert len(found) == 1, f"{name} is declared in {' and in '.join(found)}"


def test_features_declare_constraints_of_their_own_tables() -> None:
    tables, by_table = SQLModel.metadata.sorted_tables, table_owners()
    owner = {str(table.primary_key.name): by_table[table.name] for table in tables}
    owner |= owner_by_constraint()
    for feature, name, place in declarations():
        assert name in owner, f"{place} has {name}, which no table has"
        assert owner[name] == feature, f"{place} has {name}, which belongs to {owner[name]}"
