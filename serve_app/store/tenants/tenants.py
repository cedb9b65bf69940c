"""Tenants' names, folders and ids: each tenant has a folder in every area, and its own namespace of job ids.

The operator, tenant "", has the areas themselves, and so the tenants' folders too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import BinaryIO

from serve_app.errors import FileMissingError
from serve_app.store.files.store import Area, Content, FileRef, FileStat, Store

NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
LENGTH = 63
"""How long a tenant's name may be."""
MARK = "@"
"""What a tenant's folder begins with, and its name in the ids of its jobs; no tenant's name has it."""
JOB_ID_LENGTH = 36 + len(MARK) + LENGTH
"""How long a job's id may be: a UUID and a tenant's name."""


def is_tenant(name: object) -> bool:
    """Whether a value can be a tenant's name: of letters of one case, so that no two have one folder."""
    return isinstance(name, str) and len(name) <= LENGTH and NAME.fullmatch(name) is not None


def folder(tenant: str) -> str:
    """Return the name of a tenant's folder, "" for the operator."""
    return f"{MARK}{tenant}" if tenant else ""


def placed(ref: FileRef, tenant: str) -> FileRef:
    """Return where a tenant's file lies. Errors: FileMissingError for a name that leaves the tenant's folder."""
    if not tenant:
        return ref
    _ = ref.path
    return FileRef(ref.area, f"{folder(tenant)}/{ref.subfolder}".rstrip("/"), ref.filename)


def placed_key(key: str, tenant: str) -> str:
    """Return a key of saved files, AREA/PREFIX, with the tenant's folder in it."""
    area, _, path = key.partition("/")
    return f"{area}/{folder(tenant)}/{path}" if tenant else key


def named_by_tenant(ref: FileRef) -> FileRef:
    """Return a file as its tenant names it, without the tenant's folder."""
    first, _, rest = ref.subfolder.partition("/")
    return FileRef(ref.area, rest, ref.filename) if first.startswith(MARK) else ref


def job_id_of(prompt_id: str, tenant: str) -> str:
    """Return the server-wide id of a tenant's job, as ids of several tenants may be equal."""
    return f"{prompt_id}{MARK}{tenant}" if tenant else prompt_id


def prompt_id_of(job_id: str) -> str:
    """Return a job's id as its tenant knows it."""
    return job_id.partition(MARK)[0]


def tenant_of(job_id: str) -> str:
    """Return the tenant of a job by its id in the scheduler; "" without one."""
    return job_id.partition(MARK)[2]


def store_of(store: Store, tenant: str) -> Store:
    """Return a store restricted to a tenant's folders."""
    return TenantStore(store, tenant) if tenant else store


class TenantStore:
    """A store within one tenant's folders."""

    def __init__(self, store: Store, tenant: str) -> None:
        self._store, self._tenant = store, tenant

    def stat(self, ref: FileRef) -> FileStat:
        """As `Store.stat`."""
        with self._as_it_names_them():
            return self._store.stat(placed(ref, self._tenant))

    def open(self, ref: FileRef, span: range | None = None) -> BinaryIO:
        """As `Store.open`."""
        with self._as_it_names_them():
            return self._store.open(placed(ref, self._tenant), span)

    def write(self, ref: FileRef, data: Content, *, replace: bool = True) -> None:
        """As `Store.write`."""
        with self._as_it_names_them():
            self._store.write(placed(ref, self._tenant), data, replace=replace)

    def names(self, area: Area, subfolder: str = "") -> Iterator[str]:
        """As `Store.names`."""
        return self._store.names(area, placed(FileRef(area, subfolder, "any"), self._tenant).subfolder)

    def files(self, area: Area, subfolder: str = "") -> Iterator[tuple[FileRef, float]]:
        """As `Store.files`."""
        within = placed(FileRef(area, subfolder, "any"), self._tenant).subfolder
        return ((named_by_tenant(ref), at_s) for ref, at_s in self._store.files(area, within))

    def delete(self, ref: FileRef) -> None:
        """As `Store.delete`."""
        self._store.delete(placed(ref, self._tenant))

    def link(self, ref: FileRef, content_type: str, disposition: str) -> str | None:
        """As `Store.link`."""
        return self._store.link(placed(ref, self._tenant), content_type, disposition)

    @contextlib.contextmanager
    def _as_it_names_them(self) -> Iterator[None]:
        """Replace paths in errors of missing files by the tenant's names."""
        try:
            yield
        except FileMissingError as error:
            raise FileMissingError(str(error).replace(f"{folder(self._tenant)}/", "", 1)) from error
