"""Which stored files the prompts of jobs that have not ended name: those must stay until they have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import sqlalchemy as sa

from serve_app.errors import FileMissingError
from serve_app.store.schema import JOBS
from serve_app.store.store import FileRef

Place: TypeAlias = tuple[str, str]
"""Where a file lies: its area and its path there, however it is written."""
LONGEST = 1100
"""No name of a file has more characters, and most of a prompt's long texts have."""


@dataclass(frozen=True, slots=True)
class NamedByUnfinished:
    """What jobs that have not ended may come to read: whatever a constant of theirs could name."""

    writes: ClassVar[bool] = False

    def carry_out(self, connection: sa.Connection) -> frozenset[Place]:
        """Return where those files lie, if they are there."""
        prompts = connection.execute(sa.select(JOBS.c.prompt).where(JOBS.c.ended_s.is_(None))).scalars()
        return frozenset(place for prompt in prompts for place in places_named(json.loads(prompt)))


def places_named(value: Any) -> Iterator[Place]:
    """Yield where files lie that the texts in a JSON value name."""
    if isinstance(value, str):
        if 0 < len(value) <= LONGEST:
            yield from places([FileRef.parse(value)])
    elif isinstance(value, dict):
        for each in value.values():
            yield from places_named(each)
    elif isinstance(value, list):
        for each in value:
            yield from places_named(each)


def places(refs: Iterable[FileRef]) -> Iterator[Place]:
    """Yield where files lie; a name that is none is left out."""
    for ref in refs:
        try:
            yield (ref.area, ref.path)
        except FileMissingError:
            continue
