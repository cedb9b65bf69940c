"""The client of a ComfyUI."""

from __future__ import annotations

import uuid

from serve_app.comfyui.client import graph_id
from serve_app.store.tenants.tenants import job_id_of

JOB = str(uuid.UUID(int=7))


def test_jobs_of_one_id_are_graphs_of_ids_of_their_own() -> None:
    assert graph_id(JOB) == JOB
    ids = [graph_id(job_id_of(JOB, tenant)) for tenant in ("", "a", "b")]
    assert len({uuid.UUID(each) for each in ids}) == 3
