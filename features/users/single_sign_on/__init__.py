"""Sign-in at OpenID providers."""
