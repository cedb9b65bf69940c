"""How a database of an older release comes to have the tables of this one: Alembic's revisions.

A new revision is a file in `versions`, made by `alembic revision --autogenerate` with the `alembic.ini` beside
`pyproject.toml` or written by hand, and the same change in `schema.py`; `schema.REVISION` names the newest.
"""
