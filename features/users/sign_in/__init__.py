"""Sign-in with email and password, and the token endpoint."""
