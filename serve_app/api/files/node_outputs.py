"""Outputs of nodes as assets: each file and each text, with an id derived from its job, node and value.

So every process gives an output the same id.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from serve_app.errors import FileMissingError
from serve_app.store.files.store import AREAS, FileRef
from serve_app.store.page.assets import FOLDER
from serve_app.store.tenants.tenants import job_id_of

FLAGS = frozenset({"animated"})
"""Keys beside a node's files that are flags, not files."""

_IDS = uuid.UUID("6b0f2f0e-6f53-4a55-9d5b-6a4f0c1f7d2e")
"""The namespace of outputs' ids."""


@dataclass(frozen=True, slots=True)
class OutputItem:
    """One output of a node: a file, or a text.

    former_id: the id of a tenant's output in databases from before ids of jobs were per tenant.
    """

    asset_id: str
    former_id: str
    node_id: str
    ref: FileRef
    text: str | None

    def with_stored_id(self, kept: Container[str]) -> OutputItem:
        """Return the output with the id that it has in the database."""
        return replace(self, asset_id=self.former_id) if self.former_id in kept else self


def output_items(job_id: str, tenant: str, node_id: str, ui: Mapping[str, Any]) -> Iterator[OutputItem]:
    """Yield the outputs of a node of a tenant's job. ui: the node's ui dict."""
    for key, values in ui.items():
        if key in FLAGS:
            continue
        for place, value in enumerate(values if isinstance(values, list | tuple) else [values]):
            if value is None or isinstance(value, bool):
                continue
            asset_id, former_id = (
                str(uuid.uuid5(_IDS, json.dumps([job, node_id, key, place])))
                for job in (job_id_of(job_id, tenant), job_id)
            )
            if (ref := _file(value)) is not None:
                yield OutputItem(asset_id, former_id, node_id, ref, None)
            else:
                text = value if isinstance(value, str) else json.dumps(value)
                yield OutputItem(asset_id, former_id, node_id, FileRef("output", FOLDER, f"{asset_id}.txt"), text)


def _file(value: Any) -> FileRef | None:
    """Return the file that a value refers to, or None."""
    if not isinstance(value, Mapping) or not isinstance(value.get("filename"), str):
        return None
    area = next((known for known in AREAS if known == value.get("type", "output")), None)
    if area is None:
        return None
    subfolder, _, filename = f"{value.get('subfolder') or ''}/{value['filename']}".lstrip("/").rpartition("/")
    ref = FileRef(area, subfolder, filename)
    try:
        _ = ref.path
    except FileMissingError:
        return None
    return ref
