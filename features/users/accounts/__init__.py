"""Accounts: registration, email addresses, reading, changing and deleting one."""
