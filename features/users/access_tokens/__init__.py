"""Access tokens: how they are signed, verified and revoked."""
