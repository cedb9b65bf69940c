"""Finds stored files that are in use: by unfinished jobs, as inputs or outputs, and by assets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import sqlalchemy as sa

from serve_app.errors import FileMissingError
from serve_app.store.database.query_scope import TenantScoped
from serve_app.store.database.schema import ASSETS, JOBS, OUTPUTS, UNFINISHED
from serve_app.store.files.reserved import shown
from serve_app.store.files.store import Area, FileRef
from serve_app.store.tenants.tenants import MARK, named_by_tenant, placed

StoredPath: TypeAlias = tuple[Area, str]
"""Where a file lies: its area and its path there, however it is written."""
LONGEST = 1100
"""No name of a file has more characters, and most of a prompt's long texts have."""
FEW = 16
"""So many files are looked for in the texts of prompts before those are parsed, which takes long for a long queue."""
BATCH = 500
"""How many paths one statement names."""


@dataclass(frozen=True, slots=True)
class NeededFiles(TenantScoped):
    """Finds which of some files are in use by an unfinished job or an asset.

    An asset of a job's output belongs to the job and does not count. tenant: only its files are returned.
    """

    writes: ClassVar[bool] = False

    files: tuple[StoredPath, ...]
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> frozenset[StoredPath]:
        """Return the files in use."""
        needed: set[StoredPath] = set()
        filenames = {ref_of(place).filename for place in self.files}
        prompts = sa.select(JOBS.c.tenant, JOBS.c.prompt).where(UNFINISHED & self._likely_in(JOBS.c.prompt))
        for tenant, prompt in connection.execute(prompts):
            needed.update(places(_named(json.loads(prompt), filenames), tenant))
        outputs = sa.select(JOBS.c.tenant, OUTPUTS.c.ui).join(OUTPUTS, OUTPUTS.c.job_id == JOBS.c.job_id)
        for tenant, ui in connection.execute(outputs.where(UNFINISHED & self._likely_in(OUTPUTS.c.ui))):
            needed.update(places(shown(json.loads(ui)), tenant))
        for start in range(0, len(self.files), BATCH):
            paths = [named_by_tenant(ref_of(place)).path for place in self.files[start : start + BATCH]]
            referred = sa.select(ASSETS.c.area, ASSETS.c.path, ASSETS.c.tenant).where(ASSETS.c.job_id.is_(None))
            for area, path, tenant in connection.execute(referred.where(ASSETS.c.path.in_(paths))):
                needed.update(places([ref_of((area, path))], tenant))
        return frozenset(p for p in needed.intersection(self.files) if self.tenant in ("", tenant_of(p)))

    def _likely_in(self, column: sa.Column[str]) -> sa.ColumnElement[bool]:
        """The condition that a JSON text may name one of a few files."""
        if len(self.files) > FEW:
            return sa.true()
        names = {json.dumps(ref_of(place).filename)[1:-1] for place in self.files}
        return sa.or_(sa.false(), *(column.contains(name, autoescape=True) for name in names))


def places(refs: Iterable[FileRef], tenant: str = "") -> Iterator[StoredPath]:
    """Yield the stored paths of a tenant's files; invalid names are skipped."""
    for ref in refs:
        try:
            yield (ref.area, placed(ref, tenant).path)
        except FileMissingError:
            continue


def tenant_of(place: StoredPath) -> str:
    """Return the tenant of a file, "" for the operator."""
    first, slash, _ = place[1].partition("/")
    return first.removeprefix(MARK) if slash and first.startswith(MARK) else ""


def ref_of(place: StoredPath) -> FileRef:
    """Return the file at a stored path."""
    subfolder, _, filename = place[1].rpartition("/")
    return FileRef(place[0], subfolder, filename)


def _named(value: Any, filenames: Set[str]) -> Iterator[FileRef]:
    """Yield the files, in any folder, that strings in a JSON value may name."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            last = each.rpartition("/")[2]
            # Most texts of a long queue are none of these, and what follows takes ten times as long.
            if (last in filenames or last.endswith("]")) and len(each) <= LONGEST:
                yield FileRef.parse(each)
        elif isinstance(each, dict):
            left += each.values()
        elif isinstance(each, list):
            left += each
