"""The job database: schema, connections, statements, backups, on SQLite and PostgreSQL."""
