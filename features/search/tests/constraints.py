"""Constraints of the search tables that no request can violate, for
tests/architecture/test_constraints.py."""

NEVER_VIOLATED = {
    "uq_search_models_provider_name_dimension": "written with ON CONFLICT, and by tasks alone",
    "uq_search_models_active": "written by tasks alone",
    "fk_search_embeddings_owner_id_item_id": "written by tasks alone",
    "fk_search_embeddings_model_id": "written by tasks alone",
}
"""Constraint names, each with the reason."""

REFERENCE_TABLES = {"search_models": "a few rows, of which each machine of a cluster has a copy"}
"""Tables without an owner that private ones refer to, each with the reason."""
