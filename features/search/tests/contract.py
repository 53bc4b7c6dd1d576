"""What the OpenAPI document cannot express about search, for tests/contract/test_contract.py."""

UNDOCUMENTED_ERRORS = {r"needs \d+ numbers": "the length of a vector depends on the model in use"}
"""Error details allowed for a body that is valid by the document, each with the reason."""

NEVER_SUCCEEDING = {
    "search_search_by_vector": "needs as many numbers as the model has dimensions",
}
"""Operations that cannot succeed with bodies generated from the document, each with the reason."""
