"""Finds unfinished jobs that name a model file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import sqlalchemy as sa

from serve_app.store.database.query_scope import ServerScoped
from serve_app.store.database.schema import JOBS, UNFINISHED

PAGE = 50
"""The prompts that are read in one batch."""


@dataclass(frozen=True, slots=True)
class NamesModel(ServerScoped):
    """Finds an unfinished job that names a file as loaders do: by its name within any folder."""

    writes: ClassVar[bool] = False

    name: str

    def execute(self, connection: sa.Connection) -> str | None:
        """Return the job's id, or None."""
        written = json.dumps(self.name)[1:-1]
        likely = UNFINISHED & JOBS.c.prompt.contains(written, autoescape=True)
        found = connection.execute(sa.select(JOBS.c.job_id, JOBS.c.prompt).where(likely).order_by(JOBS.c.order))
        for rows in found.partitions(PAGE):
            for job_id, prompt in rows:
                if self.name in _texts(json.loads(prompt)):
                    return str(job_id)
        return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
