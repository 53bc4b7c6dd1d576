"""What the OpenAPI document cannot tell of the search, for tests/contract/test_contract.py."""

BEYOND_SCHEMA = {r"needs \d+ numbers": "the length of a vector depends on the model in use"}
"""What a refusal of a body that is valid in the document may say, each with the reason."""

UNREACHED = {
    "search_search_by_vector": "needs as many numbers as the model has dimensions",
}
"""What cannot succeed with what the document tells, each with the reason."""
