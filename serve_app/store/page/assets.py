"""Assets: records of stored files by id; several may have the same bytes.

An upload lies once in the store, in the input area's folder FOLDER under a name of its own, however many assets refer
to it; it is deleted with the last of them. An asset of a job's output is a record alone: its file is the job's.
Each belongs to one tenant; the operator sees all, by their stored paths. The transaction that deletes a record decides
whether its file is deleted afterwards; a crash leaves an orphan, which `sweep.py` removes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple

import sqlalchemy as sa

from serve_app.errors import AssetMissingError
from serve_app.store.database.idempotency_keys import KeyClaim, claim_keys
from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.query_scope import ServerScoped, TenantScoped
from serve_app.store.database.schema import ASSET_USES, ASSETS, JOBS, UNFINISHED
from serve_app.store.files.store import AREAS, FileRef
from serve_app.store.tenants.tenants import job_id_of, placed, prompt_id_of

FOLDER = "assets"
"""The folder of uploads in the input area."""
NAME = re.compile(r"[0-9a-f]{64}-[0-9a-f]{12}(\.[a-z0-9]{1,8})?")
"""The names of files there: the hash of their content, a unique part, and a suffix."""
BATCH = 500
"""The ids of one statement."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A record of stored bytes.

    hash: "blake3:HEX"; None of an output that was not read. path: of the file within its area. size: bytes. name: the
    client's name or path. expires_s: Unix time, None for never. job_id, node_id: of an output.
    tenant: its owner. user_metadata: the client's JSON; preview_id: of the asset that shows what it is.
    """

    asset_id: str
    hash: str | None
    area: str
    path: str
    size: int
    content_type: str
    name: str | None
    tags: tuple[str, ...]
    created_s: float
    expires_s: float | None = None
    job_id: str | None = None
    node_id: str | None = None
    tenant: str = ""
    user_metadata: Mapping[str, Any] = field(default_factory=dict)
    preview_id: str | None = None

    @property
    def ref(self) -> FileRef:
        """Return the file."""
        area = next(known for known in AREAS if known == self.area)
        subfolder, _, filename = self.path.rpartition("/")
        return FileRef(area, subfolder, filename)


class Minted(NamedTuple):
    """The result of a new asset. asset: the record. created: whether it is new; shared: whether its bytes existed."""

    asset: Asset
    created: bool
    shared: bool


@dataclass(frozen=True, slots=True)
class MintAsset(TenantScoped):
    """Stores a client's asset. An existing one with equal bytes and name is used instead, with the later expiry. asset:
    if other assets have its bytes, it shares their file, and its own is an orphan. stored: whether it has a file; else
    its bytes must exist, and a content type of "" is theirs. key: an idempotency key. Errors: KeyReusedError.
    """

    writes: ClassVar[bool] = True

    asset: Asset
    stored: bool
    key: str | None = None
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> Minted | None:
        """Return the result; None if the tenant does not have the bytes."""
        asset = replace(self.asset, tenant=self.tenant)
        if self.key is not None:
            claim_keys(connection, [KeyClaim(asset.asset_id, self.key, asset.created_s, self.tenant)])
        alike = _select(connection, (ASSETS.c.hash == asset.hash) & (ASSETS.c.tenant == self.tenant) & _live())
        own = [a for a in alike if a.job_id is None and a.name == asset.name]
        if own:
            kept = own[0]
            ends = (kept.expires_s, asset.expires_s)
            longest = None if None in ends else max(e for e in ends if e is not None)
            connection.execute(sa.update(ASSETS).where(_is(kept.asset_id)).values(expires_s=longest))
            # The same call, made again because its answer was lost, has made the record itself.
            again = kept.asset_id == asset.asset_id
            return Minted(replace(kept, expires_s=longest), again, not again or len(alike) > 1)
        if alike:
            there = alike[0]
            there_type = asset.content_type or there.content_type
            asset = replace(asset, area=there.area, path=there.path, size=there.size, content_type=there_type)
        elif not self.stored:
            return None
        _insert(connection, [asset])
        return Minted(asset, True, bool(alike))


@dataclass(frozen=True, slots=True)
class RecordOutputs(TenantScoped):
    """Stores assets of jobs' outputs, unless they exist."""

    writes: ClassVar[bool] = True

    assets: tuple[Asset, ...]
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> None:
        """Insert them."""
        theirs = [(asset, job_id_of(asset.job_id or "", self.tenant)) for asset in self.assets]
        _insert(connection, [replace(asset, job_id=job_id, tenant=self.tenant) for asset, job_id in theirs])


@dataclass(frozen=True, slots=True)
class SetHash(TenantScoped):
    """Stores the hash of an output that had none."""

    writes: ClassVar[bool] = True

    asset_id: str
    hash: str
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> None:
        """Change its record."""
        unknown = _is(self.asset_id) & ASSETS.c.hash.is_(None)
        if self.tenant:
            unknown &= ASSETS.c.tenant == self.tenant
        connection.execute(sa.update(ASSETS).where(unknown).values(hash=self.hash))


class OutputAsset(NamedTuple):
    """The state of an output's asset. deleted: whether its client has deleted it."""

    asset: Asset
    deleted: bool


@dataclass(frozen=True, slots=True)
class OutputsOf(TenantScoped):
    """Lists the assets of some jobs' outputs, by id; at most BATCH jobs."""

    writes: ClassVar[bool] = False

    job_ids: tuple[str, ...]
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> dict[str, OutputAsset]:
        """Return them."""
        job_ids = [job_id_of(job_id, self.tenant) for job_id in self.job_ids]
        theirs = ASSETS.c.job_id.in_(job_ids) & (ASSETS.c.tenant == self.tenant)
        rows = connection.execute(sa.select(ASSETS).where(theirs)).all()
        return {row.asset_id: OutputAsset(_asset(row, self.tenant), row.deleted_s is not None) for row in rows}


@dataclass(frozen=True, slots=True)
class FindAssets(TenantScoped):
    """Finds assets by id; absent ones are left out."""

    writes: ClassVar[bool] = False

    asset_ids: tuple[str, ...]
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> dict[str, Asset]:
        """Return them by id."""
        found = {}
        for start in range(0, len(self.asset_ids), BATCH):
            wanted = ASSETS.c.asset_id.in_(self.asset_ids[start : start + BATCH])
            found.update({asset.asset_id: asset for asset in _select(connection, wanted & _live(), self.tenant)})
        return found


@dataclass(frozen=True, slots=True)
class HasBytes(TenantScoped):
    """Finds out whether an asset has these bytes."""

    writes: ClassVar[bool] = False

    hash: str
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> bool:
        """Return the answer."""
        there = (ASSETS.c.hash == self.hash) & (ASSETS.c.tenant == self.tenant) & _live()
        has = sa.select(sa.literal(1)).select_from(ASSETS).where(there).limit(1)
        return connection.execute(has).first() is not None


class Deleted(NamedTuple):
    """The result of a deletion. files: those without a record."""

    what: Literal["deleted", "missing", "in use"]
    files: tuple[FileRef, ...] = ()


@dataclass(frozen=True, slots=True)
class DeleteAsset(TenantScoped):
    """Deletes an asset, unless an unfinished job uses it."""

    writes: ClassVar[bool] = True

    asset_id: str
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> Deleted:
        """Return the result. The record of an output stays, so that it is not created again."""
        found = _select(connection, _is(self.asset_id) & _live(), self.tenant)
        if not found:
            return Deleted("missing")
        if connection.execute(_used(self.asset_id)).first() is not None:
            return Deleted("in use")
        if found[0].job_id is not None:
            connection.execute(sa.update(ASSETS).where(_is(self.asset_id)).values(deleted_s=time.time()))
            return Deleted("deleted")
        return Deleted("deleted", _remove(connection, found, self.tenant))


@dataclass(frozen=True, slots=True)
class ExpireAssets(ServerScoped):
    """Deletes expired assets, except those that an unfinished job uses."""

    writes: ClassVar[bool] = True

    def execute(self, connection: sa.Connection) -> tuple[FileRef, ...]:
        """Return the files without a record."""
        used = sa.select(ASSET_USES.c.asset_id).join(JOBS, JOBS.c.job_id == ASSET_USES.c.job_id)
        used = used.where(UNFINISHED)
        over = (ASSETS.c.expires_s <= time.time()) & ASSETS.c.asset_id.not_in(used)
        return _remove(connection, _select(connection, over), "")


@dataclass(frozen=True, slots=True)
class KnownFiles(ServerScoped):
    """Lists the names in FOLDER that assets refer to."""

    writes: ClassVar[bool] = False

    def execute(self, connection: sa.Connection) -> frozenset[str]:
        """Return them."""
        paths = sa.select(ASSETS.c.path).where((ASSETS.c.area == "input") & ASSETS.c.path.startswith(f"{FOLDER}/"))
        return frozenset(path.removeprefix(f"{FOLDER}/") for path in connection.execute(paths).scalars())


class AssetUse(NamedTuple):
    """The use of assets by a job. tenant: of the job."""

    job_id: str
    asset_id: str
    tenant: str


def use(connection: sa.Connection, uses: Sequence[AssetUse]) -> None:
    """Record the use of assets by jobs; costs no statement without any. Errors: AssetMissingError for the job."""
    for job_id, asset_id, tenant in uses:
        # One that is used already may have expired since: a statement may be carried out twice.
        if not _select(connection, _is(asset_id) & (_live() | _is_used_by(job_id)), tenant):
            raise AssetMissingError(job_id, f"asset {asset_id} is not there", asset_id)
    rows = [{"job_id": one.job_id, "asset_id": one.asset_id} for one in uses]
    insert_once(connection, ASSET_USES, ("job_id", "asset_id"), rows)


def _is(asset_id: str) -> sa.ColumnElement[bool]:
    return ASSETS.c.asset_id == asset_id


def _live() -> sa.ColumnElement[bool]:
    return ASSETS.c.deleted_s.is_(None) & (ASSETS.c.expires_s.is_(None) | (ASSETS.c.expires_s > time.time()))


def _used(asset_id: str) -> Any:
    unfinished = sa.select(ASSET_USES.c.job_id).join(JOBS, JOBS.c.job_id == ASSET_USES.c.job_id)
    return unfinished.where((ASSET_USES.c.asset_id == asset_id) & UNFINISHED).limit(1)


def _is_used_by(job_id: str) -> sa.ColumnElement[bool]:
    return ASSETS.c.asset_id.in_(sa.select(ASSET_USES.c.asset_id).where(ASSET_USES.c.job_id == job_id))


def _remove(connection: sa.Connection, assets: Iterable[Asset], tenant: str) -> tuple[FileRef, ...]:
    """Delete the records of uploads and return the files that no other record has, as `tenant` finds them."""
    files = []
    for asset in assets:
        connection.execute(sa.delete(ASSETS).where(_is(asset.asset_id)))
        shared = (ASSETS.c.hash == asset.hash) & (ASSETS.c.area == asset.area) & (ASSETS.c.path == asset.path)
        shared &= ASSETS.c.tenant == asset.tenant
        left = connection.execute(sa.select(sa.literal(1)).select_from(ASSETS).where(shared).limit(1)).first()
        # A reference to an output's bytes stands in the output area, where files are the jobs'.
        if left is None and asset.area == "input" and asset.ref.subfolder == FOLDER:
            files.append(asset.ref if tenant else placed(asset.ref, asset.tenant))
    return tuple(files)


def _insert(connection: sa.Connection, assets: Sequence[Asset]) -> None:
    rows = [{f.name: getattr(asset, f.name) for f in fields(asset)} for asset in assets]
    texts = [{name: json.dumps(row[name]) for name in ("tags", "user_metadata")} for row in rows]
    insert_once(connection, ASSETS, ("asset_id",), [{**row, **text} for row, text in zip(rows, texts, strict=True)])


def _select(connection: sa.Connection, where: sa.ColumnElement[bool], tenant: str = "") -> list[Asset]:
    """Return assets; for a tenant only its own."""
    if tenant:
        where &= ASSETS.c.tenant == tenant
    rows = connection.execute(sa.select(ASSETS).where(where).order_by(ASSETS.c.created_s, ASSETS.c.asset_id))
    return [_asset(row, tenant) for row in rows]


def select_assets(
    connection: sa.Connection,
    where: sa.ColumnElement[bool],
    order: Sequence[sa.ColumnElement[Any]],
    limit: int,
    tenant: str,
) -> list[Asset]:
    """Return the first assets that are live, in an order; of those of one tenant's, "" for the operator's own."""
    own = where & _live() & (ASSETS.c.tenant == tenant)
    rows = connection.execute(sa.select(ASSETS).where(own).order_by(*order).limit(limit))
    return [_asset(row, tenant) for row in rows]


def _asset(row: Any, tenant: str) -> Asset:
    """Return an asset as the tenant or the operator sees it."""
    values = {f.name: getattr(row, f.name) for f in fields(Asset)}
    if tenant and row.job_id is not None:
        values["job_id"] = prompt_id_of(row.job_id)
    read = {"tags": tuple(json.loads(row.tags)), "user_metadata": json.loads(row.user_metadata)}
    return Asset(**{**values, **read})
