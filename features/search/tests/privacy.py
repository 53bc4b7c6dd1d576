"""What is sent to the search, for tests/contract/test_privacy.py."""

SENT = {"POST /search/vector": {"json": {"vector": [1.0] * 384}}}  # as the packaged model has
"""What is sent where the document has no example: arguments of a request of httpx."""
