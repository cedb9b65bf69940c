"""Hostile requests over every route of both dialects: `python -m tests.fuzz --requests 20000 --seed 1 [--url URL]`."""
