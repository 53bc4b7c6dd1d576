"""Refresh tokens: they continue a session, each with one use."""
