"""LTX-2's networks against ComfyUI's modules, with the same weights, in float32 (golden/ltx.npz, by `ltx_figures`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from serve_app.models.audio_vae import AudioVae
from serve_app.models.families.autoencoders.ltx2_upscaler import Ltx2Upscaler
from serve_app.models.families.family import Rows
from serve_app.models.families.video.ltx2 import Ltx2
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.nested_tensor import NestedTensor
from serve_app.recipe.guidance import PerturbedStreams
from serve_app.recipe.recipe import Part
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from serve_app.sampling.latents.layout import LatentLayout
from tests.parity import ltx_cases
from tests.parity.dit_cases import noise
from tests.parity.figures import GOLDEN, MODULE_TOLERANCE, Figures, thinned
from tests.parity.ltx_cases import CASES, Case, autoencoder_weights

CPU = torch.device("cpu")
FIGURES = Figures("ltx")
KEYS = json.loads((GOLDEN / "ltx_keys.json").read_text())
NETS_OF = {"vae": "ltx2", "vae 2.5": "ltx25"}
"""Editions whose metadata has an autoencoder."""
EXTENDED_TOLERANCE = 2e-3
"""Of sound whose upper half is made from its spectrum's logarithm: latents moved by one unit in the last place move it
by 9e-4, and ComfyUI's own on another processor is 1e-3 off."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("ltx")
    transformer.cache_clear()
    autoencoder.cache_clear()


@lru_cache
def transformer(folder: Path, name: str) -> tuple[Ltx2, nn.Module]:
    path = folder / f"{name}.safetensors"
    save_file(autoencoder_weights(KEYS[name]), path, ltx_cases.metadata(name))
    family, module = Checkpoint(path).load("backbone")
    assert isinstance(family, Ltx2)
    return family, module


def rows(family: Ltx2, case: Case) -> list[Rows]:
    """Return what the network is asked, a row a piece, as a run would ask it."""
    asked, levels, made = ltx_cases.asked(case), ltx_cases.levels(case), []
    for i in range(len(levels)):
        parts = [part[i : i + 1] for part in (asked.video, asked.sound)]
        samples = NestedTensor(parts) if case.sound else parts[0]
        layout = LatentLayout.of(samples)
        x = layout.pack(samples)
        mask = None
        if asked.masks is not None:
            own = [m[i : i + 1].expand_as(part) for m, part in zip(asked.masks, parts, strict=True)]
            mask = layout.pack(NestedTensor(own))
        canvas = Canvas(x, x, mask, layout=layout)
        inputs = family.inputs(asked.text[i : i + 1], case.options(), "positive", canvas, CPU, Discrete())
        made.append(Rows(x, float(levels[i]), levels[i : i + 1], inputs))
    return made


@lru_cache
def autoencoder(folder: Path, name: str, part: Part) -> tuple[Any, nn.Module]:
    """Return an autoencoder of the networks that a name of KEYS stands for."""
    path = folder / f"{name} {part}.safetensors"
    named = {key.replace("autoencoder.", "audio_vae."): t for key, t in autoencoder_weights(KEYS[name]).items()}
    save_file(named, path, ltx_cases.metadata(NETS_OF.get(name) or name.partition(" ")[0]))
    return Checkpoint(path).load(part)


@pytest.mark.parametrize("name", [*ltx_cases.VAES, "ltx2 sounds", "ltx23 sounds"])
def test_all_numbers_of_an_autoencoder_are_weights_which_go_to_a_device(folder: Path, name: str) -> None:
    _, module = autoencoder(folder, name, "audio_vae" if "sounds" in name else "vae")
    assert [buffer for buffer, _ in module.named_buffers()] == []


@torch.inference_mode()
@pytest.mark.parametrize("name", ltx_cases.VAES)
@pytest.mark.parametrize("count", ltx_cases.LATENT_FRAMES)
def test_a_video_is_encoded_and_decoded_as_by_comfyui(folder: Path, count: int, name: str) -> None:
    family, module = autoencoder(folder, name, "vae")
    images = noise(f"images {count}", (1, 3, 8 * count - 7, 32, 64)).sigmoid() * 2 - 1
    FIGURES.assert_agrees(family.encode(module, images), f"{name} {count} encoded", MODULE_TOLERANCE)
    made = family.decode(module, noise(f"latents {count}", (1, 128, count, 2, 3)))
    assert made.shape == (1, 3, 8 * count - 7, 64, 96)
    FIGURES.assert_agrees(torch.from_numpy(thinned(made.numpy())), f"{name} {count} decoded", MODULE_TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("name", ltx_cases.UPSCALERS)
def test_latents_are_enlarged_as_by_comfyui(folder: Path, name: str) -> None:
    path = folder / f"{name}.safetensors"
    save_file(autoencoder_weights(KEYS[f"upscaler of {name}"]), path, {"config": json.dumps(ltx_cases.UPSCALERS[name])})
    family, module = Checkpoint(path).load("latent_upscaler")
    assert isinstance(family, Ltx2Upscaler)
    made = family.enlarged(module, noise("small", (1, 128, 2, 2, 3)))
    FIGURES.assert_agrees(torch.from_numpy(thinned(made.numpy())), f"{name} enlarged", MODULE_TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("net", "rate", "tolerance"), [("ltx2", 24000, MODULE_TOLERANCE), ("ltx23", 48000, EXTENDED_TOLERANCE)]
)
def test_a_sound_is_decoded_as_by_comfyui(folder: Path, net: str, rate: int, tolerance: float) -> None:
    family, module = autoencoder(folder, f"{net} sounds", "audio_vae")
    assert family.output_rate == rate
    made = family.decode(module, noise("sound latents", (1, 8, 3, 16)))
    FIGURES.assert_agrees(torch.from_numpy(thinned(made.numpy())), f"{net} heard", tolerance)


@torch.inference_mode()
def test_spectra_are_encoded_as_by_comfyui(folder: Path) -> None:
    family, module = autoencoder(folder, "ltx23 sounds", "audio_vae")
    made = family.latents(module, noise("spectra", ltx_cases.SPECTRA))
    FIGURES.assert_agrees(made, "spectra encoded", MODULE_TOLERANCE)


@torch.inference_mode()
def test_a_tone_is_encoded_at_its_pitch_and_a_whole_number_of_steps(folder: Path) -> None:
    family, module = autoencoder(folder, "ltx23 sounds", "audio_vae")
    tone = torch.sin(torch.arange(10 * family.step + 5) * (2 * torch.pi * 1000 / family.rate))[None, None]
    seen: list[torch.Tensor] = []
    module.audio_vae.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    made = AudioVae(family, module).encode(tone)
    [spectra] = seen
    # Slaney's scale is linear below 1 kHz, which is mel 15 of 45.2 at 8 kHz.
    assert int(spectra[0, 0, 20].argmax()) == round(15 / 45.245 * 65) - 1
    assert made.shape[-2] == -(-spectra.shape[2] // 4)


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_forward_is_comfyuis(folder: Path, case: Case) -> None:
    family, module = transformer(folder, case.net)
    asked = rows(family, case)
    made = torch.cat(family.forward(module, asked))
    for part, tensor in zip(("video", "sound"), asked[0].inputs.layout.parts(made), strict=False):
        FIGURES.assert_agrees(tensor, f"{case.name} {part}", MODULE_TOLERANCE)


@torch.inference_mode()
def test_a_row_without_its_reference_is_as_if_there_were_none(folder: Path) -> None:
    case = next(case for case in CASES if case.reference)
    family, module = transformer(folder, case.net)
    asked = rows(family, case)
    bare = [replace(row, inputs=replace(row.inputs, reference=None)) for row in asked]
    without = [replace(row, layers=(PerturbedStreams(unreferenced=True),)) for row in asked]
    for made, wanted in zip(family.forward(module, [without[0], asked[1]]), (bare[0], asked[1]), strict=True):
        torch.testing.assert_close(made, family.forward(module, [wanted])[0])


@torch.inference_mode()
def test_a_text_is_modulated_by_tables_alone_where_its_modulation_follows_no_level(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.net == "ltx25")
    tensors = autoencoder_weights(KEYS["ltx25"])
    timed = {n: t * 0 if "prompt_adaln_single.linear" in n else t for n, t in tensors.items()}
    bare = {n: t for n, t in tensors.items() if "prompt_adaln_single" not in n}
    made = []
    for name, weights in (("timed", timed), ("bare", bare)):
        save_file(weights, path := tmp_path / f"{name}.safetensors", ltx_cases.metadata("ltx25"))
        family, module = Checkpoint(path).load("backbone")
        assert isinstance(family, Ltx2)
        made.append(torch.cat(family.forward(module, rows(family, case))))
    torch.testing.assert_close(*made)
