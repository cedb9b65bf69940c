"""HTTP: a folder a dialect, and what all dialects share. The rules of jobs are in `service` and `scheduler`."""
