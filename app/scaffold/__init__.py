"""For developers: a new feature from templates, and the next revision of its tables."""
