"""Image encoders, style models and unCLIP against ComfyUI's, with the same weights, in float32."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from serve_app.models.families import Sdxl, Unclip
from serve_app.models.families.family import BackboneFamily, Family, Rows, StyleFamily, VisionFamily
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.vision import ImageEncoder, StyleModel
from serve_app.nodes.conditioning.vision import style_model_apply, unclip_conditioning
from serve_app.recipe.recipe import Part, Recipe
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from serve_app.values import ClipVisionOutput, Conditioning
from tests.parity.dit_cases import GUIDANCE, POOLED_WIDTH, SIGMAS, noise, weights
from tests.parity.figures import GOLDEN, Figures
from tests.parity.vision_cases import (
    IMAGES,
    LOOKS,
    OPEN_CLIP,
    POOLED,
    SEED,
    STATES,
    STYLED,
    TEXTS,
    UNCLIP,
    WIDTHS,
    Styled,
    open_clip,
    picture,
)

FIGURES = Figures("vision")
KEYS = json.loads((GOLDEN / "vision_keys.json").read_text())
FLUX = json.loads((GOLDEN / "dit_keys.json").read_text())["flux"]
TOLERANCE = 1e-5
CPU = torch.device("cpu")
NOTHING = Recipe("style_model", "style_models", "a.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vision")


@lru_cache
def loaded(folder: Path, part: Part, name: str) -> tuple[Family, nn.Module]:
    path = folder / f"{name}.safetensors"
    drawn = weights(FLUX if part == "backbone" else KEYS[name])
    save_file(open_clip(drawn, OPEN_CLIP[name]) if name in OPEN_CLIP else drawn, path)
    return Checkpoint(path).load(part)


def encoder(folder: Path, name: str) -> ImageEncoder:
    family, network = loaded(folder, "clip_vision", name)
    assert isinstance(family, VisionFamily)
    return ImageEncoder(family, network)


def seen(output: ClipVisionOutput) -> dict[str, Tensor]:
    flat = {part: states.flatten() for part, states in output.states.items()}
    return {part: values[:: max(1, len(values) // 2000)] for part, values in flat.items()}


@torch.inference_mode()
@pytest.mark.parametrize(("name", "image", "crop"), LOOKS)
def test_what_is_seen_is_what_comfyui_sees(folder: Path, name: str, image: str, crop: bool) -> None:
    [output] = encoder(folder, name).see([picture(image)], crop=crop)
    for part, values in seen(output).items():
        FIGURES.assert_agrees(values, f"{name}|{image}|{crop}|{part}", TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["l", "g"])
def test_images_of_several_jobs_in_one_forward_are_seen_as_alone(folder: Path, name: str) -> None:
    together = encoder(folder, name).see([picture(image) for image in IMAGES], crop=True)
    for image, output in zip(IMAGES, together, strict=True):
        assert len(output.last_hidden_state) == IMAGES[image][0]
        for part, values in seen(output).items():
            FIGURES.assert_agrees(values, f"{name}|{image}|True|{part}", TOLERANCE)


class Styles:
    """A runtime that knows one style model."""

    def __init__(self, model: StyleModel) -> None:
        self._model = model

    async def style(self, style_model: Recipe, output: ClipVisionOutput) -> Tensor:
        return self._model.tokens(output.last_hidden_state)


def styled(folder: Path, case: Styled) -> Conditioning:
    family, network = loaded(folder, "style_model", case.style)
    assert isinstance(family, StyleFamily)
    runtime: Any = Styles(StyleModel(family, network))
    conditioning: Conditioning = [(noise(f"{case.style} text", TEXTS[case.style])[:1], {})]
    for number, (strength, kind) in enumerate(case.applied):
        states = noise(f"{case.style} states {number}", STATES[case.style])
        output = ClipVisionOutput(states, states, states)
        applied = style_model_apply(conditioning, NOTHING, output, strength, kind, runtime)
        conditioning = asyncio.run(applied)
    return conditioning


@torch.inference_mode()
@pytest.mark.parametrize("case", STYLED, ids=lambda case: case.name)
def test_a_style_makes_comfyuis_tokens_and_bias(folder: Path, case: Styled) -> None:
    [(text, options)] = styled(folder, case)
    FIGURES.assert_agrees(text, f"{case.name}|text", TOLERANCE)
    assert ("attention_mask" in options) == (f"{case.name}|mask" in FIGURES.names)
    if "attention_mask" in options:
        assert torch.equal(options["attention_mask"], FIGURES[f"{case.name}|mask"])


def asked(folder: Path, case: Styled) -> Rows:
    """Return what Flux is asked in a case, one row."""
    family, _ = loaded(folder, "backbone", "flux")
    assert isinstance(family, BackboneFamily)
    [(text, options)] = styled(folder, case)
    told = {"pooled_output": noise(f"{case.name} pooled", (1, POOLED_WIDTH)), "guidance": GUIDANCE[0], **options}
    x = noise(f"{case.name} x", (1, 16, *case.size))
    inputs = family.inputs(text, told, "positive", Canvas(x, x), CPU, Discrete())
    return Rows(x, SIGMAS[0], torch.tensor(SIGMAS[:1]), inputs)


FLUX_CASES = [case for case in STYLED if case.style == "redux"]


@torch.inference_mode()
@pytest.mark.parametrize("case", FLUX_CASES, ids=lambda case: case.name)
def test_a_styled_forward_of_flux_is_comfyuis(folder: Path, case: Styled) -> None:
    family, network = loaded(folder, "backbone", "flux")
    assert isinstance(family, BackboneFamily)
    [answer] = family.forward(network, [asked(folder, case)])
    FIGURES.assert_agrees(answer, f"{case.name}|answer", TOLERANCE)


@torch.inference_mode()
def test_styles_of_several_jobs_in_one_forward_are_comfyuis(folder: Path) -> None:
    """Texts of several lengths, with and without a bias, of one size."""
    family, network = loaded(folder, "backbone", "flux")
    assert isinstance(family, BackboneFamily)
    together = [case for case in FLUX_CASES if case.size == (8, 6)]
    rows = [asked(folder, case) for case in together]
    assert len({row.inputs.text.shape for row in rows}) > 1
    assert {row.inputs.bias is None for row in rows} == {True, False}
    for case, answer in zip(together, family.forward(network, rows), strict=True):
        FIGURES.assert_agrees(answer, f"{case.name}|answer", TOLERANCE)


def told_of_images(name: str, width: int) -> Mapping[str, Any]:
    conditioning: Conditioning = [(torch.zeros(1, 7, 8), {"pooled_output": torch.zeros(1, POOLED)})]
    for number, (images, strength, augmentation) in enumerate(UNCLIP[name]):
        embeds = noise(f"{name} {width} {number}", (images, width))
        output = ClipVisionOutput(embeds, embeds, embeds)
        conditioning = unclip_conditioning(conditioning, output, strength, augmentation)
    return conditioning[0][1]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", UNCLIP)
def test_unclip_is_conditioned_on_images_as_comfyuis(name: str, width: int) -> None:
    family = Unclip((320, 640), (2, 2), (0, 1), 1, 1024, linear=True, vector_dim=2 * width)
    x = torch.zeros(1, 4, 64, 96)
    told = family.vector(told_of_images(name, width), Canvas(x, x, seed=SEED), "positive")
    assert told is not None
    FIGURES.assert_agrees(told, f"unclip|{width}|{name}", TOLERANCE)


@pytest.mark.parametrize("name", UNCLIP)
def test_sdxl_is_conditioned_on_images_in_place_of_the_pooled_text_as_comfyuis(name: str) -> None:
    family = Sdxl((320, 640), (2, 2), (0, 1), 1, 2048, linear=True, vector_dim=2816)
    x = torch.zeros(1, 4, 64, 96)
    told = family.vector(told_of_images(name, POOLED), Canvas(x, x, seed=SEED), "positive")
    assert told is not None
    FIGURES.assert_agrees(told, f"sdxl|{name}", TOLERANCE)
