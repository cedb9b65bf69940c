"""SeedVR2 against ComfyUI's modules and nodes, with the same weights (golden/seedvr2.npz, by `seedvr2_figures`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.families.family import Rows
from serve_app.models.families.video.seedvr2 import SeedVr2
from serve_app.models.families.video.seedvr2_blocks import frequencies_of
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.kernels.packing import move_to
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.sampling.forward import Canvas
from tests.parity import seedvr2_cases as cases
from tests.parity.dit_cases import noise
from tests.parity.figures import GOLDEN, MODULE_TOLERANCE, TOLERANCE, Figures, thinned
from tests.parity.stack import Stack
from tests.parity.test_minimax_h3 import rotated_int8
from tests.parity.workflow import Nodes

FIGURES = Figures("seedvr2")
KEYS = json.loads((GOLDEN / "seedvr2_keys.json").read_text())
CPU = torch.device("cpu")


class Given:
    """The images of a case."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "get"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING", {})}}

    def get(self, name: str) -> tuple[Tensor]:
        if name == "video":
            return (cases.video(),)
        return ((noise("pixels", (9, 32, 48, 3)).sigmoid() * 0.8 + 0.1).contiguous(),)


_TILES = {"vae": ["vae", 0], "tile_size": cases.TILE, "overlap": cases.SHARED}
NODES: Nodes = {
    "model": ("UNETLoader", {"unet_name": "seedvr2_3b.safetensors", "weight_dtype": "default"}),
    "vae": ("VAELoader", {"vae_name": "seedvr2_vae.safetensors"}),
    "pixels": ("Given", {"name": "pixels"}),
    "encoded": ("VAEEncode", {"pixels": ["pixels", 0], "vae": ["vae", 0]}),
    "decoded": ("VAEDecode", {"samples": ["encoded", 0], "vae": ["vae", 0]}),
    "first": ("TrimVideoLatent", {"samples": ["encoded", 0], "trim_amount": 2}),
    "video": ("Given", {"name": "video"}),
    "prepared": ("SeedVR2Preprocess", {"resized_images": ["video", 0]}),
    "encoded in tiles": (
        "VAEEncodeTiled",
        {"pixels": ["prepared", 0], **_TILES, "temporal_size": 64, "temporal_overlap": 8},
    ),
    "parts": (
        "SeedVR2TemporalChunk",
        {
            "latent": ["encoded in tiles", 0],
            "temporal_overlap": cases.OVERLAP,
            "chunking_mode": "manual",
            "chunking_mode.frames_per_chunk": cases.CHUNK,
        },
    ),
    "told": ("SeedVR2Conditioning", {"model": ["model", 0], "vae_conditioning": ["parts", 0]}),
    "k": (
        "KSampler",
        {
            "model": ["model", 0],
            "positive": ["told", 0],
            "negative": ["told", 1],
            "latent_image": ["parts", 0],
            "seed": cases.SEED,
            "steps": cases.STEPS,
            "cfg": cases.CFG,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        },
    ),
    "sampled": ("SeedVR2TemporalMerge", {"latents": ["k", 0], "temporal_overlap": ["parts", 1]}),
    "decoded in tiles": (
        "VAEDecodeTiled",
        {"samples": ["sampled", 0], **_TILES, "temporal_size": 64, "temporal_overlap": 8},
    ),
    **{
        method: (
            "SeedVR2PostProcessing",
            {
                "images": ["decoded in tiles", 0],
                "original_resized_images": ["video", 0],
                "color_correction_method": method,
            },
        )
        for method in ("lab", "wavelet", "adain", "none")
    },
}


def tensors(name: str) -> dict[str, Tensor]:
    """Return a file's tensors; of the network of 3 B, with frequencies of its own."""
    made = cases.weights(KEYS[name])
    if name == "3b":
        made["blocks.0.attn.rope.rope.freqs"] = frequencies_of(cases.NETS[name]["head_dim"]) * cases.FASTER
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models with all files, named as the published ones are."""
    folder = tmp_path_factory.mktemp("models")
    for part in ("diffusion_models", "vae"):
        (folder / part).mkdir()
    for name in cases.NETS:
        save_file(tensors(name), folder / "diffusion_models" / f"seedvr2_{name}.safetensors")
    save_file(tensors("vae"), folder / "vae" / "seedvr2_vae.safetensors")
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("name", cases.NETS)
def test_the_network_answers_as_comfyuis_does_for_several_videos_at_once(root: Path, name: str) -> None:
    family, network = Checkpoint(root / "diffusion_models" / f"seedvr2_{name}.safetensors").load("backbone")
    assert isinstance(family, SeedVr2)
    x, condition, text = cases.asked()
    rows = []
    for i, level in enumerate((300.0, 900.0)):
        own = slice(i, i + 1)
        canvas = Canvas(x[own], x[own])
        inputs = family.inputs(text[own], {"condition": condition[own]}, "positive", canvas, CPU, family.trained_as)
        rows.append(Rows(x[own], level / 1000, torch.tensor([level]), inputs))
    made = torch.cat(family.forward(network, rows))
    FIGURES.assert_agrees(torch.from_numpy(thinned(made.numpy())), name, MODULE_TOLERANCE)


LAYERS = ("blocks.0.attn.proj_qkv.vid", "blocks.1.mlp.txt.proj_out", "blocks.3.mlp.all.proj_in")


@torch.inference_mode()
def test_layers_in_int8_answer_as_the_weights_that_they_stand_for(tmp_path: Path) -> None:
    stored = rotated_int8(tensors("3b"), LAYERS)
    wide = tensors("3b")
    for layer in LAYERS:
        kept = EightBitWeight(stored[f"{layer}.weight"], stored[f"{layer}.weight_scale"], 16)
        wide[f"{layer}.weight"] = kept.wide()
    x, condition, text = cases.asked()
    made = []
    for name, file in (("stored", stored), ("wide", wide)):
        save_file({key: tensor.contiguous() for key, tensor in file.items()}, tmp_path / f"{name}.safetensors")
        family, network = Checkpoint(tmp_path / f"{name}.safetensors").load("backbone")
        assert isinstance(family, SeedVr2)
        move_to(network, CPU, torch.float32)
        canvas = Canvas(x, x)
        inputs = family.inputs(text, {"condition": condition}, "positive", canvas, CPU, family.trained_as)
        made += family.forward(network, [Rows(x, 0.3, torch.full((2,), 300.0), inputs)])
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def stack(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(root, tmp_path_factory.mktemp("files"), {"Given": Given})
    yield stack
    stack.engine.close()


@pytest.mark.parametrize(
    "name",
    [
        *("encoded", "decoded", "prepared", "encoded in tiles", "sampled", "decoded in tiles"),
        *("lab", "wavelet", "adain", "none"),
    ],
)
async def test_a_workflow_gives_comfyuis_values(stack: Stack, name: str) -> None:
    value = await stack.run(name, **NODES)
    made = (value["samples"] if isinstance(value, dict) else value).float().numpy()
    theirs = FIGURES[name].numpy()
    found = made if name == "sampled" else thinned(made)
    assert found.shape == theirs.shape
    error = np.linalg.norm(found - theirs) / np.linalg.norm(theirs)
    assert error < TOLERANCE, f"{error:.1e}"


def test_a_file_without_its_texts_is_refused(tmp_path: Path) -> None:
    without = {name: tensor for name, tensor in tensors("3b").items() if "conditioning" not in name}
    save_file(without, tmp_path / "bare.safetensors")
    with pytest.raises(ModelFileError, match="without the texts that it reads, 'positive_conditioning'"):
        Checkpoint(tmp_path / "bare.safetensors").load("backbone")
