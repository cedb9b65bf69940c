"""A database's rows as a file: backups of all, and tenants on their way to another database."""
