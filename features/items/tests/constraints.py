"""For tests/architecture/test_constraints.py: constraints of items that requests cannot violate."""

NEVER_VIOLATED = {"ck_items_price_positive": "the schemas refuse such a price"}
"""Constraints, each with the reason."""
