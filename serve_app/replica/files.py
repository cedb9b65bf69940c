"""Opens the configured stores of clients' files and model files, and computes files' fingerprints."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from serve_app import log
from serve_app.config import AppConfig
from serve_app.config.storage import S3Config
from serve_app.errors import StoreError
from serve_app.store.files.input_folders import INPUT_FOLDERS, folder_tag
from serve_app.store.files.location import Location
from serve_app.store.files.store import FileRef, Store, WholeStore
from serve_app.store.files.volume import Volume
from serve_app.store.models.catalog import Catalog
from serve_app.store.models.extra_paths import ExtraPath, directories_with, read_extra_paths
from serve_app.store.tenants.tenants import store_of

if TYPE_CHECKING:
    from serve_app.store.models.mirror import Mirror

_log = log.get("replica")


def open_store(config: AppConfig, *, retry: bool = True) -> WholeStore:
    """Return the store of clients' files. retry False: an unreachable one is not retried."""
    if not isinstance(config.store, S3Config):
        return Volume(config.directories)
    # Imported here, as below: a server with files on a volume needs no S3 client.
    from serve_app.store.files.bucket import Bucket
    from serve_app.store.files.s3 import S3

    location = Location.of(config.store) if retry else Location.of(config.store).hurried
    return S3(Bucket(location), config.store.link_s if config.store.presigned_redirects else None)


def open_catalog(config: AppConfig) -> Catalog:
    """Return the catalog of model files. Errors: ConfigError for a file of extra paths that cannot be read."""
    return Catalog(open_mirror(config) or config.models_dir, directories_with(extra_paths(config)))


def extra_paths(config: AppConfig) -> list[ExtraPath]:
    """Return the further directories of model files. Errors: ConfigError."""
    return [path for file in config.extra_model_paths for path in read_extra_paths(file)]


def open_mirror(config: AppConfig) -> Mirror | None:
    """Return the mirror of the bucket with model files on this host; None if they are on a volume."""
    if (location := models_location(config)) is None:
        return None
    from serve_app.store.files.bucket import Bucket
    from serve_app.store.models.mirror import Mirror

    return Mirror(Bucket(location), config.models_dir, config.models_cache_bytes)


def models_location(config: AppConfig) -> Location | None:
    """Return the bucket of the model files, if they are in one; by default at the store's endpoint."""
    if config.models is None:
        return None
    location, store = Location.of(config.models), config.store
    if config.models.endpoint is not None or not isinstance(store, S3Config):
        return location
    return replace(location, endpoint=store.endpoint, region=store.region, path_style=store.path_style)


class Fingerprint(Protocol):
    """(folder, name) -> a tag that changes with the file: of a tenant's upload, or of a model file."""

    def __call__(self, folder: str, name: str, tenant: str = "") -> str: ...


def fingerprints(catalog: Catalog, store: Store) -> Fingerprint:
    """Return the function that computes a named file's fingerprint.

    A file that cannot be looked up counts as new: its node runs, and reports errors.
    """

    def fingerprint(folder: str, name: str, tenant: str = "") -> str:
        try:
            if folder == INPUT_FOLDERS:
                return folder_tag(store_of(store, tenant), name)
            if folder == "input":
                return store_of(store, tenant).stat(FileRef.parse(name)).etag
            return catalog.fingerprint(folder, name)
        except StoreError as error:
            _log.warning("taking %s file %s for a new one: %s", folder, name, error)
            return f"unknown {uuid.uuid4().hex}"

    return fingerprint
