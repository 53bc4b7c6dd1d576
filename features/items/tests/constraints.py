"""Constraints of the items' tables that no request can violate, for
tests/architecture/test_constraints.py."""

UNREACHABLE = {"ck_items_price_positive": "the schemas refuse such a price"}
"""Each with the reason."""
