"""The nodes that save models, from recipes to files in the output folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.execution.files import NodeFiles
from serve_app.nodes.loaders.models import checkpoint_loader_simple
from serve_app.nodes.registry import BUILTIN
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS, FileRef
from serve_app.store.files.volume import Volume
from serve_app.store.models.catalog import Catalog
from tests.unit.models.sample import cpu_weights, write_sample_checkpoint

PROMPT, WORKFLOW = {"1": {"class_type": "X"}}, {"workflow": {"nodes": []}}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root = tmp_path_factory.mktemp("models")
    write_sample_checkpoint(root / "checkpoints" / "a.safetensors")
    return Catalog(root)


async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
    return max(1, at_least), False


@pytest.mark.parametrize(
    ("name", "parts", "filename", "tensor"),
    [
        (
            "CheckpointSave",
            ("model", "clip", "vae"),
            "all/mine_00001_.safetensors",
            "first_stage_model.decoder.conv_in.bias",
        ),
        ("ModelSave", ("model",), "all/mine_00001_.safetensors", "model.diffusion_model.input_blocks.0.0.bias"),
        ("CLIPSave", ("clip",), "all/mine_clip_l_00001_.safetensors", "text_model.final_layer_norm.bias"),
        ("VAESave", ("vae",), "all/mine_00001_.safetensors", "decoder.conv_in.bias"),
    ],
)
async def test_parts_are_saved_with_their_workflow_and_reported(
    catalog: Catalog, tmp_path: Path, name: str, parts: tuple[str, ...], filename: str, tensor: str
) -> None:
    volume = Volume({area: tmp_path / area for area in AREAS})
    done: list[tuple[int, int]] = []
    engine = Engine(1, HostTimeline())
    runtime = EngineRuntime(engine, cpu_weights(catalog)).bind(lambda at, of: done.append((at, of)))
    recipes = dict(zip(("model", "clip", "vae"), checkpoint_loader_simple("a.safetensors"), strict=True))
    node: Any = BUILTIN[name]()
    shown = await node.save(
        **{part: recipes[part] for part in parts},
        filename_prefix="all/mine",
        prompt=PROMPT,
        extra_pnginfo=WORKFLOW,
        runtime=runtime,
        store=NodeFiles(volume, "job", "1", reserve),
    )
    subfolder, _, saved = filename.rpartition("/")
    assert shown == {"ui": {"models": [{"filename": saved, "subfolder": subfolder, "type": "output"}]}}
    with safe_open(str(volume.resolve(FileRef("output", subfolder, saved))), "pt") as file:
        assert tensor in file.keys()  # noqa: SIM118
        metadata = file.metadata()
    assert (json.loads(metadata["prompt"]), json.loads(metadata["workflow"])) == (PROMPT, WORKFLOW["workflow"])
    assert done[-1][0] == done[-1][1] > 0
    engine.close()
