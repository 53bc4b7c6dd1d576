"""For tests/contract/test_contract.py: what the OpenAPI document cannot express about items."""

ANY_BODY_ACCEPTED = {
    "items_import": "a line that cannot be read is reported, and the others imported"
}
"""Operations that accept any body, each with the reason."""

UNDOCUMENTED_ERRORS = {
    "no more than 2 decimal places": "a float's multiples of 0.01 are not exact",
    "The CSV header": "a schema describes no text",
}
"""Errors that a body may cause although it is valid in the document, each with the reason."""

LINE_MEDIA_TYPES = ("application/jsonl", "application/x-ndjson")
"""Media types whose bodies are sent as plain text."""
