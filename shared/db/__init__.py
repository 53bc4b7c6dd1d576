"""The database: sessions, connection pools, statements, tables and migrations."""
