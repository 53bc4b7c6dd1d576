"""Request bodies for search, for tests/contract/test_privacy.py."""

REQUEST_ARGUMENTS = {
    "POST /search/vector": {"json": {"vector": [1.0] * 384}}
}  # the model's dimension
"""Arguments of httpx's `request` for operations without an example in the OpenAPI document."""
