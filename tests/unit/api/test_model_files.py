"""Model files that cannot be used are refused as a workflow that names them is submitted, in either dialect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from tests.unit.api.scripted_replica import Reached


def write(tmp_path: Path, *names: str) -> None:
    """Write the checkpoint of the contract's example, with tensors of these names."""
    path = tmp_path / "models" / "checkpoints" / "sd15.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {name: {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [i, i + 1]} for i, name in enumerate(names)}
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(len(names)))


async def test_a_file_of_a_family_that_is_not_there_is_refused_by_name_before_the_job_is_accepted(
    client: httpx.AsyncClient, scheduler: Reached, example: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, "model.diffusion_model.t5_yproj.weight")
    loader = next(i for i, node in example["prompt"].items() if node["class_type"] == "CheckpointLoaderSimple")
    wrong = "ckpt_name 'sd15.safetensors' holds a diffusion network of Mochi, which is not supported"
    answer = await client.post("/api/prompt", json=example)
    assert answer.status_code == 400
    [error] = answer.json()["node_errors"][loader]["errors"]
    assert error["type"] == "model_file_not_supported"
    assert wrong in error["message"]
    answer = await client.post("/prompt", json=example)
    assert answer.status_code == 400
    assert wrong in answer.text
    assert (await client.get("/api/queue")).json() == {"queue_running": [], "queue_pending": []}


async def test_a_file_of_a_family_that_is_there_is_accepted(
    client: httpx.AsyncClient, example: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, "model.diffusion_model.input_blocks.0.0.weight")
    assert (await client.post("/api/prompt", json=example)).status_code == 200
