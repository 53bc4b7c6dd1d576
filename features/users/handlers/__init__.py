"""Use-cases of accounts."""
