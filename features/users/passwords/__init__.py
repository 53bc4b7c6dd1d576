"""Passwords: hashing, change, and reset by mail."""
