"""Networks beside ComfyUI's modules, with the same weights, in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from serve_app.models.families.family import BackboneFamily, Rows, VaeFamily
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.recipe.recipe import Part
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from serve_app.values import ClipVisionOutput
from tests.parity.figures import GOLDEN, Figures, module_tolerance
from tests.parity.networks.cases import BACKBONES, CASES, IMAGES, MULTIPLIERS, SIGMAS, VAES, Case, noise, weights

CPU = torch.device("cpu")
FIGURES = Figures("networks")
KEYS = json.loads((GOLDEN / "networks_keys.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("networks")
    yield folder
    network.cache_clear()


@lru_cache(1)
def network(folder: Path, name: str, part: Part) -> tuple[Any, nn.Module]:
    path = folder / f"{name}.safetensors"
    save_file(weights(KEYS[name]), path)
    family, module = Checkpoint(path).load(part)
    path.unlink()
    return family, module


def rows(family: BackboneFamily, case: Case) -> list[Rows]:
    """Return what the network is asked, a row a piece, as a run would ask it."""
    x, text, options = case.drawn()
    made = []
    for i, sigma in enumerate(SIGMAS):
        own = {
            key: value[i : i + 1] if isinstance(value, torch.Tensor) and len(value) > 1 else value
            for key, value in options.items()
        }
        if "clip_vision_output" in own:
            seen = own["clip_vision_output"]
            own["clip_vision_output"] = ClipVisionOutput(seen, seen, seen)
        if "masked" in own:
            own["attention_mask"] = (torch.arange(text.shape[1]) < own["masked"]).long()[None]
        if "reference_latents" in own:
            own |= {"reference_latents": [own["reference_latents"]], "reference_latents_method": "index"}
        one = x[i : i + 1]
        inputs = family.inputs(text[i : i + 1], own, "positive", Canvas(one, one), CPU, Discrete())
        level = torch.tensor([sigma * MULTIPLIERS.get(case.net, 1.0)])
        made.append(Rows(one, sigma, level, inputs))
    return made


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_forward_is_comfyuis(folder: Path, case: Case) -> None:
    family, module = network(folder, case.net, "backbone")
    assert isinstance(family, BackboneFamily)
    made = torch.cat(family.forward(module, rows(family, case)))
    FIGURES.assert_agrees(made, case.name, module_tolerance(KEYS[case.net]))


@torch.inference_mode()
@pytest.mark.parametrize("name", VAES)
def test_an_autoencoder_is_comfyuis(folder: Path, name: str) -> None:
    family, module = network(folder, f"{name} vae", "vae")
    assert isinstance(family, VaeFamily)
    for shape in IMAGES[name]:
        latents = FIGURES[f"{name} vae {shape} encoded"]
        FIGURES.assert_agrees(family.encode(module, noise(f"{name} {shape}", shape)), f"{name} vae {shape} encoded")
        FIGURES.assert_agrees(family.decode(module, latents), f"{name} vae {shape} decoded")


def test_every_network_has_figures() -> None:
    assert {case.net for case in CASES} == {*BACKBONES}
    assert {*IMAGES} == {*VAES}
