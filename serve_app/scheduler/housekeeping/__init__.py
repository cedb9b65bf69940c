"""Background work on files: retention, sweeps, and the count of stored bytes."""
