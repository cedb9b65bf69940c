"""What one tenant's nodes have made is another's only where the configuration says so, and never files or uploads."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve_app.config.pool import PoolConfig
from serve_app.store.database.changes import Submission
from tests import workflows
from tests.unit.models.sample import write_sample_checkpoint
from tests.unit.replica.cluster import Cluster, cluster

POOLS = (PoolConfig(name="gpu", threads=1),)
txt2img = partial(workflows.txt2img, "tiny.safetensors", steps=2, prefix="out")
SAVE = "6"
FROM_UPLOAD = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "mine.png"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inverted"}},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_sample_checkpoint(tmp_path / "models" / "checkpoints" / "tiny.safetensors")
    return tmp_path


async def computed(running: Cluster, tenant: str, prompt: Mapping[str, Any]) -> set[str]:
    """Let a tenant's job run, whose file must be there; return the nodes that were computed for it."""
    job_id = str(uuid.uuid4())
    await running.scheduler.submit(Submission(job_id, prompt, (SAVE,), tenant=tenant))
    view = await running.finish(job_id)
    assert view.state == "success", view.failure
    [image] = view.outputs[SAVE]["images"]
    assert (running.config.output_dir / f"@{tenant}" / image["filename"]).is_file()
    return {event.data["node"] for event in await running.events(job_id) if event.kind == "executing"}


async def test_by_default_no_result_crosses_from_one_tenant_to_another(root: Path) -> None:
    async with cluster(root, POOLS, tenants={}) as running:
        all_nodes = await computed(running, "a", txt2img(1))
        assert len(all_nodes) > 4
        assert await computed(running, "b", txt2img(1)) == all_nodes
        again = await computed(running, "a", txt2img(1, prefix="other"))
        assert again == {SAVE}, "a tenant's own results are its own to use again"


async def test_with_shared_results_impersonal_nodes_run_once_and_each_job_saves_its_own_file(root: Path) -> None:
    async with cluster(root, POOLS, tenants={"shared_results": True}) as running:
        assert len(await computed(running, "a", txt2img(1))) > 4
        assert await computed(running, "b", txt2img(1)) == {SAVE}
        assert await computed(running, "b", txt2img(1)) == set()
        assert len(await computed(running, "b", txt2img(2))) > 1


async def test_what_comes_of_an_upload_is_never_anothers_even_if_theirs_is_the_same(root: Path) -> None:
    for tenant in ("a", "b"):
        folder = root / "input" / f"@{tenant}"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(folder / "mine.png")
    async with cluster(root, POOLS, tenants={"shared_results": True}) as running:
        for tenant in ("a", "b"):
            assert await computed(running, tenant, FROM_UPLOAD) == {"1", "2", "6"}
