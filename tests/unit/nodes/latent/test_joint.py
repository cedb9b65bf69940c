"""Latents of a video and its sound through the nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nested_tensor import NestedTensor
from serve_app.nodes.latent.joint import concat_av_latent, separate_av_latent
from serve_app.nodes.latent.latents import load_latent
from serve_app.nodes.registry import BUILTIN
from tests.parity.beside import Fixed
from tests.parity.stack import Stack

VIDEO, SOUND = torch.randn(1, 4, 3, 2, 5), torch.randn(1, 3, 7, 2)
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "video": ("Fixed", {"kind": "latent", "seed": 1, "shape": "1,4,3,2,5"}),
    "sound": ("Fixed", {"kind": "latent", "seed": 2, "shape": "1,3,7,2"}),
    "joint": ("LTXVConcatAVLatent", {"video_latent": ["video", 0], "audio_latent": ["sound", 0]}),
}


def test_joined_latents_are_separated_again_with_their_masks() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    joined = concat_av_latent({"samples": VIDEO, "noise_mask": mask, "batch_index": [3]}, {"samples": SOUND})
    video, sound = separate_av_latent(joined)
    assert video["samples"] is VIDEO
    assert video["noise_mask"] is mask
    assert sound["samples"] is SOUND
    assert bool((sound["noise_mask"] == 1).all())
    assert video["batch_index"] == sound["batch_index"] == [3]


def test_a_sound_of_another_kind_is_refused_with_both_shapes() -> None:
    joined = concat_av_latent({"samples": VIDEO}, {"samples": SOUND})
    with pytest.raises(NodeError, match=r"\(1, 5, 7, 2\), and the sound that it replaces is \(1, 3, 7, 2\)"):
        concat_av_latent(joined, {"samples": torch.zeros(1, 5, 7, 2)})


def test_a_node_for_one_part_names_the_node_that_separates_them() -> None:
    joined = concat_av_latent({"samples": VIDEO}, {"samples": SOUND})
    node_class = BUILTIN["LatentUpscaleBy"]
    with pytest.raises(NodeError, match=r"samples is a latent of several parts.*LTXVSeparateAVLatent separates them"):
        getattr(node_class(), node_class.FUNCTION)(samples=joined, upscale_method="area", scale_by=2.0)  # type: ignore[attr-defined]


async def test_a_saved_latent_of_two_parts_is_loaded_as_both(tmp_path: Path) -> None:
    stack = Stack(tmp_path, tmp_path, {"Fixed": Fixed})
    try:
        saved = await stack.run("save", **PARTS, save=("SaveLatent", {"samples": ["joint", 0], "filename_prefix": "a"}))
        [name] = [file["filename"] for file in saved["latents"]]
        (tmp_path / "input").mkdir()
        (tmp_path / "output" / name).rename(tmp_path / "input" / name)
        loaded = (await load_latent(name, stack.files("load")))["samples"]
        joined = (await stack.run("joint", **PARTS))["samples"]
    finally:
        stack.engine.close()
    assert isinstance(loaded, NestedTensor)
    for part, before in zip(loaded.unbind(), joined.unbind(), strict=True):
        assert torch.equal(part, before)
