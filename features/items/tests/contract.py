"""What the OpenAPI document cannot tell of the items' API, for tests/contract/test_contract.py."""

ANY_BODY = {"items_import": "a line that cannot be read is reported, and the others imported"}
"""Operations that accept a body whatever is in it, each with the reason."""

BEYOND_SCHEMA = {
    "no more than 2 decimal places": "a float's multiples of 0.01 are not exact",
    "The CSV header": "a schema describes no text",
}
"""What a refusal of a body that is valid in the document may say, each with the reason."""

LINES = ("application/jsonl", "application/x-ndjson")
"""Media types whose bodies are sent as any text is."""
