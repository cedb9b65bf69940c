"""HTTP API: one folder per dialect, and the code that all dialects share. Rules about jobs are in `service` and
`scheduler`.
"""
