"""What the web page's gallery lists: outputs of ended jobs, and uploads. Both stretch by stretch, the newest first.

A stretch is of the tenant who asks; the operator's is of what is its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import sqlalchemy as sa

from serve_app.store.database.list_statements import of_tenant
from serve_app.store.database.query_scope import TenantScoped
from serve_app.store.database.schema import ASSETS, JOBS, OUTPUTS
from serve_app.store.page.assets import Asset, select_assets
from serve_app.store.tenants.tenants import job_id_of, prompt_id_of

CHARACTERS = 4_000_000
"""Of what jobs have shown, as JSON, in one answer; one job's is there whole."""


class EndedJob(NamedTuple):
    """place: the cursor of its end. outputs: ui dict by node id."""

    place: int
    job_id: str
    ended_s: float
    outputs: Mapping[str, Mapping[str, Any]]


class EndedJobOutputs(NamedTuple):
    """following: the place of the job that comes next; None where none does."""

    jobs: tuple[EndedJob, ...]
    following: int | None


@dataclass(frozen=True, slots=True)
class EndedOutputs(TenantScoped):
    """What jobs have shown that ended up to a place, the last first: of at most `limit` jobs."""

    writes: ClassVar[bool] = False

    limit: int
    until: int | None = None
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> EndedJobOutputs:
        """Return them, without those that have shown nothing."""
        ended = JOBS.c.ended_seq.is_not(None) & sa.exists().where(OUTPUTS.c.job_id == JOBS.c.job_id)
        ended &= of_tenant(self.tenant) if self.tenant else JOBS.c.tenant == ""
        if self.until is not None:
            ended &= JOBS.c.ended_seq <= self.until
        listed = sa.select(JOBS.c.ended_seq, JOBS.c.job_id, JOBS.c.ended_s).where(ended)
        found: list[EndedJob] = []
        left = CHARACTERS
        rows = connection.execute(listed.order_by(JOBS.c.ended_seq.desc()).limit(self.limit + 1)).all()
        for place, job_id, ended_s in rows:
            if len(found) == self.limit:
                return EndedJobOutputs(tuple(found), place)
            texts = _texts(connection, job_id)
            left -= sum(map(len, texts.values()))
            if left < 0 and found:
                return EndedJobOutputs(tuple(found), place)
            named = prompt_id_of(job_id) if self.tenant else job_id
            found.append(EndedJob(place, named, ended_s, _parsed(texts)))
        return EndedJobOutputs(tuple(found), None)


class ShownJob(NamedTuple):
    """outputs: ui dict by node id, of a job that has not ended as far as they are there."""

    job_id: str
    created_s: float
    outputs: Mapping[str, Mapping[str, Any]]


class JobOutputPage(NamedTuple):
    """jobs: those that are there. asked: how many of the ids they are the answer to, the first of them."""

    jobs: tuple[ShownJob, ...]
    asked: int


@dataclass(frozen=True, slots=True)
class JobOutputs(TenantScoped):
    """What some jobs have shown, as many of them as one answer holds."""

    writes: ClassVar[bool] = False

    job_ids: tuple[str, ...]
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> JobOutputPage:
        """Return it, of the first of the jobs at least."""
        own = of_tenant(self.tenant) if self.tenant else JOBS.c.tenant == ""
        found: list[ShownJob] = []
        left = CHARACTERS
        for place, named in enumerate(self.job_ids):
            job_id = job_id_of(named, self.tenant)
            created_s = connection.execute(sa.select(JOBS.c.created_s).where(own & (JOBS.c.job_id == job_id))).scalar()
            if created_s is None:
                continue
            texts = _texts(connection, job_id)
            left -= sum(map(len, texts.values()))
            if left < 0 and found:
                return JobOutputPage(tuple(found), place)
            found.append(ShownJob(named, created_s, _parsed(texts)))
        return JobOutputPage(tuple(found), len(self.job_ids))


def _texts(connection: sa.Connection, job_id: str) -> dict[str, str]:
    """Return the JSON of what each node of a job has shown, by its id."""
    shown = sa.select(OUTPUTS.c.node_id, OUTPUTS.c.ui).where(OUTPUTS.c.job_id == job_id)
    return {row.node_id: row.ui for row in connection.execute(shown.order_by(OUTPUTS.c.seq))}


def _parsed(texts: Mapping[str, str]) -> dict[str, Any]:
    return {node_id: json.loads(ui) for node_id, ui in texts.items()}


class UploadsEnd(NamedTuple):
    """Where a stretch of uploads ends."""

    created_s: float
    asset_id: str


@dataclass(frozen=True, slots=True)
class Uploads(TenantScoped):
    """Assets that clients have uploaded, at most `limit`, past the end of an earlier stretch."""

    writes: ClassVar[bool] = False

    limit: int
    past: UploadsEnd | None = None
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> tuple[Asset, ...]:
        """Return them."""
        where: sa.ColumnElement[bool] = ASSETS.c.job_id.is_(None)
        place = sa.tuple_(ASSETS.c.created_s, ASSETS.c.asset_id)
        if self.past is not None:
            where &= place < sa.tuple_(*map(sa.literal, self.past))
        order = (ASSETS.c.created_s.desc(), ASSETS.c.asset_id.desc())
        return tuple(select_assets(connection, where, order, self.limit, self.tenant))


@dataclass(frozen=True, slots=True)
class ChangeTags(TenantScoped):
    """Give an asset tags, and take some from it. most: how many it may have."""

    writes: ClassVar[bool] = True

    asset_id: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    most: int
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> tuple[str, ...] | None:
        """Return its tags, as they are now if it would have too many; None if it is not there."""
        where = (ASSETS.c.asset_id == self.asset_id) & (ASSETS.c.tenant == self.tenant)
        found = select_assets(connection, where, (), 1, self.tenant)
        if not found:
            return None
        kept = [tag for tag in found[0].tags if tag not in self.removed]
        tags = tuple(dict.fromkeys((*kept, *self.added)))
        if len(tags) > self.most:
            return found[0].tags
        connection.execute(sa.update(ASSETS).where(where).values(tags=json.dumps(tags)))
        return tags


@dataclass(frozen=True, slots=True)
class ChangeAsset(TenantScoped):
    """Call an asset otherwise, and change what its client keeps with it; None leaves that as it is."""

    writes: ClassVar[bool] = True

    asset_id: str
    name: str | None
    user_metadata: Mapping[str, Any] | None
    preview_id: str | None
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> Asset | None:
        """Return it as it is now; None if it is not there."""
        where = (ASSETS.c.asset_id == self.asset_id) & (ASSETS.c.tenant == self.tenant)
        values = {"name": self.name, "preview_id": self.preview_id}
        if self.user_metadata is not None:
            values["user_metadata"] = json.dumps(self.user_metadata)
        if changed := {column: value for column, value in values.items() if value is not None}:
            connection.execute(sa.update(ASSETS).where(where).values(changed))
        found = select_assets(connection, where, (), 1, self.tenant)
        return found[0] if found else None
