"""Benchmarks of the whole server and of its engine, each beside a baseline measured in the same run.

`python -m bench` runs them and writes `results/`; see README.md.
"""
