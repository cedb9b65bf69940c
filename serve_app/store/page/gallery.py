"""The queries of the web page's gallery: outputs of ended jobs, and uploads, in pages, the newest first.

A page has the caller's own data, also the operator's.
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
"""The most bytes of ui JSON in one answer; the first job's is always complete."""


class EndedJob(NamedTuple):
    """An ended job. place: the cursor of its end. outputs: ui dict by node id."""

    place: int
    job_id: str
    ended_s: float
    outputs: Mapping[str, Mapping[str, Any]]


class EndedJobOutputs(NamedTuple):
    """A page of ended jobs. following: the place of the next job, or None."""

    jobs: tuple[EndedJob, ...]
    following: int | None


@dataclass(frozen=True, slots=True)
class EndedOutputs(TenantScoped):
    """Lists the outputs of at most `limit` jobs that ended up to a place, the last first."""

    writes: ClassVar[bool] = False

    limit: int
    until: int | None = None
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> EndedJobOutputs:
        """Return the jobs that have outputs."""
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
    """A job's outputs: ui dict by node id; of an unfinished job those recorded so far."""

    job_id: str
    created_s: float
    outputs: Mapping[str, Mapping[str, Any]]


class JobOutputPage(NamedTuple):
    """The outputs of jobs. jobs: the existing ones. asked: how many of the given ids are covered."""

    jobs: tuple[ShownJob, ...]
    asked: int


@dataclass(frozen=True, slots=True)
class JobOutputs(TenantScoped):
    """Lists the outputs of some jobs, as many as fit one answer."""

    writes: ClassVar[bool] = False

    job_ids: tuple[str, ...]
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> JobOutputPage:
        """Return the outputs, at least of the first job."""
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
    """Return the ui JSON of each node of a job, by node id."""
    shown = sa.select(OUTPUTS.c.node_id, OUTPUTS.c.ui).where(OUTPUTS.c.job_id == job_id)
    return {row.node_id: row.ui for row in connection.execute(shown.order_by(OUTPUTS.c.seq))}


def _parsed(texts: Mapping[str, str]) -> dict[str, Any]:
    return {node_id: json.loads(ui) for node_id, ui in texts.items()}


class UploadsEnd(NamedTuple):
    """The end of a page of uploads."""

    created_s: float
    asset_id: str


@dataclass(frozen=True, slots=True)
class Uploads(TenantScoped):
    """Lists at most `limit` uploads after the end of an earlier page."""

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
    """Adds and removes tags of an asset. most: the most tags."""

    writes: ClassVar[bool] = True

    asset_id: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    most: int
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> tuple[str, ...] | None:
        """Return its tags, unchanged if there would be too many; None if the asset is absent."""
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
    """Changes an asset's name and its client's data; None leaves a value."""

    writes: ClassVar[bool] = True

    asset_id: str
    name: str | None
    user_metadata: Mapping[str, Any] | None
    preview_id: str | None
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> Asset | None:
        """Return the changed asset, None if it is absent."""
        where = (ASSETS.c.asset_id == self.asset_id) & (ASSETS.c.tenant == self.tenant)
        values = {"name": self.name, "preview_id": self.preview_id}
        if self.user_metadata is not None:
            values["user_metadata"] = json.dumps(self.user_metadata)
        if changed := {column: value for column, value in values.items() if value is not None}:
            connection.execute(sa.update(ASSETS).where(where).values(changed))
        found = select_assets(connection, where, (), 1, self.tenant)
        return found[0] if found else None
