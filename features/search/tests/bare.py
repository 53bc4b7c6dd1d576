"""What the minimal server of the benchmarks answers for search (tests/benchmarks/bare.py)."""

from features.search.tests.minimal_server import search

HANDLERS = {"/search": search}
