"""Merged models that this server has saved, opened by a real ComfyUI: `COMFYUI_HOME=/opt/ComfyUI pytest -m comfyui`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.comfyui.pools import HOME, PYTHON
from tests.parity.cases import Case, sampled
from tests.parity.checkpoints import models_dir
from tests.parity.comfyui import ComfyUI
from tests.parity.stack import Stack
from tests.parity.workflow import EMPTY

pytestmark = [pytest.mark.comfyui, pytest.mark.skipif(HOME is None, reason="COMFYUI_HOME names no ComfyUI")]

Node = tuple[str, dict[str, Any]]
MERGED: dict[str, Node] = {
    "a": ("CheckpointLoaderSimple", {"ckpt_name": "mini15.safetensors"}),
    "b": ("CheckpointLoaderSimple", {"ckpt_name": "other.safetensors"}),
    "l": (
        "LoraLoader",
        {
            "model": ["a", 0],
            "clip": ["a", 1],
            "lora_name": "lora.safetensors",
            "strength_model": 0.7,
            "strength_clip": 0.6,
        },
    ),
    "m": ("ModelMergeSimple", {"model1": ["l", 0], "model2": ["b", 0], "ratio": 0.6}),
    "c": ("CLIPMergeSimple", {"clip1": ["l", 1], "clip2": ["b", 1], "ratio": 0.6}),
}
SAVES: dict[str, Node] = {
    "all": ("CheckpointSave", {"model": ["m", 0], "clip": ["c", 0], "vae": ["a", 2], "filename_prefix": "all"}),
    "model": ("ModelSave", {"model": ["m", 0], "filename_prefix": "model"}),
    "clip": ("CLIPSave", {"clip": ["c", 0], "filename_prefix": "clip"}),
    "vae": ("VAESave", {"vae": ["a", 2], "filename_prefix": "vae"}),
}
WHOLE: dict[str, Node] = {"all": ("CheckpointLoaderSimple", {"ckpt_name": "all_00001_.safetensors"})}
PARTS: dict[str, Node] = {
    "model": ("UNETLoader", {"unet_name": "model_00001_.safetensors", "weight_dtype": "default"}),
    "clip": ("CLIPLoader", {"clip_name": "clip_clip_l_00001_.safetensors", "type": "stable_diffusion"}),
    "vae": ("VAELoader", {"vae_name": "vae_00001_.safetensors"}),
}
FOLDERS = {"all": "checkpoints", "model": "diffusion_models", "clip": "text_encoders", "vae": "vae"}


def drawn(loaders: dict[str, Node], model: list[Any], clip: list[Any], vae: list[Any]) -> Case:
    """Return a workflow to an image."""
    return Case(
        {
            **loaders,
            **EMPTY,
            "positive": ("CLIPTextEncode", {"text": "a red fox", "clip": clip}),
            "negative": ("CLIPTextEncode", {"text": "blurry", "clip": clip}),
            "k": sampled("euler", "karras", seed=7, model=model),
            "d": ("VAEDecode", {"samples": ["k", 0], "vae": vae}),
        },
        "d",
    )


CASES = {
    "merged": drawn(MERGED, ["m", 0], ["c", 0], ["a", 2]),
    "whole": drawn(WHOLE, ["all", 0], ["all", 1], ["all", 2]),
    "parts": drawn(PARTS, ["model", 0], ["clip", 0], ["vae", 0]),
}


def error(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


async def test_a_saved_merge_is_the_same_model_to_comfyui(tmp_path: Path) -> None:
    assert HOME is not None
    models, files = tmp_path / "models", tmp_path / "files"
    own = models_dir("mini15", "lora")
    for folder in ("loras", *FOLDERS.values()):
        (models / folder).mkdir(parents=True, exist_ok=True)
    (models / "loras" / "lora.safetensors").symlink_to(own / "loras" / "lora.safetensors")
    (models / "checkpoints" / "mini15.safetensors").symlink_to(own / "checkpoints" / "mini15.safetensors")
    weights = load_file(own / "checkpoints" / "mini15.safetensors")
    # Other weights of the same size, of every layer alike: its outputs in another order.
    save_file(
        {name: t.roll(1, 0).contiguous() if t.is_floating_point() and t.ndim > 1 else t for name, t in weights.items()},
        models / "checkpoints" / "other.safetensors",
    )
    before = Stack(models, files)
    for target in SAVES:
        [saved] = (await before.run(target, **MERGED, **{target: SAVES[target]}))["models"]
        made = files / saved["type"] / saved["subfolder"] / saved["filename"]
        made.rename(models / FOLDERS[target] / made.name)
    before.engine.close()
    stack = Stack(models, files)
    ours = {name: (await stack.run(case.target, **case.nodes)).float().numpy() for name, case in CASES.items()}
    stack.engine.close()
    theirs = ComfyUI(Path(HOME), Path(PYTHON)).workflows(CASES, models)
    assert theirs.keys() == CASES.keys()
    for name in CASES:
        print(name, error(ours[name], theirs[name]), error(theirs[name], theirs["merged"]))
        assert error(ours[name], theirs[name]) < 1e-5
    # Files are in half precision, as those that went into the merge.
    assert np.array_equal(theirs["whole"], theirs["parts"])
    assert error(theirs["whole"], theirs["merged"]) < 5e-3
    assert torch.tensor(theirs["whole"]).isfinite().all()
