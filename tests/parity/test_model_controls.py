"""Model controls against ComfyUI's, with the same weights, in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.control.dit_control_file import open_model_patch
from serve_app.models.control.model_control import ActiveModelControl, ModelPatch, activated
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.recipe.controls import ModelControl
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from serve_app.sampling.schedules.levels import FlowLevels
from tests.parity.dit_cases import weights
from tests.parity.dit_control_cases import Vae
from tests.parity.figures import GOLDEN, Figures
from tests.parity.model_control_cases import CASES, NETS, PATCHES, SAID, SIGMAS, Case, asked, file, lllite

CPU = torch.device("cpu")
FIGURES = Figures("model_controls")
KEYS = json.loads((GOLDEN / "model_control_keys.json").read_text())
TOLERANCE = 1e-5
PUBLISHED = {"q_norm": "norm_q", "k_norm": "norm_k", "out": "to_out.0"}
LEVELS = FlowLevels(1.0, 1.0)
VAE = Recipe("vae", "vae", "vae")
MADE_FOR = {
    "zimage": ("Z-Image", "qwen"),
    "qwen": ("Qwen-Image", "zimage"),
    "flux": (r"Flux\.1", "qwen"),
    "anima": ("Anima", "qwen"),
}
"""Which family the patches of a backbone are made for, and another one."""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("patches")
    with torch.inference_mode():
        yield folder
    backbone.cache_clear()
    patch.cache_clear()


@lru_cache
def backbone(folder: Path, name: str) -> tuple[BackboneFamily, nn.Module]:
    path = folder / f"{name}.safetensors"
    save_file(weights(KEYS[name]), path)
    family, module = Checkpoint(path).load("backbone")
    assert isinstance(family, BackboneFamily)
    return family, module


def as_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a patch of Z-Image's tensors under the names of the published file, queries, keys and values apart."""
    published = {}
    for name, tensor in tensors.items():
        *path, layer, leaf = name.split(".")
        if layer == "qkv":
            for kind, part in zip("qkv", tensor.chunk(3), strict=True):
                published[".".join((*path, f"to_{kind}", leaf))] = part.contiguous()
        else:
            published[".".join((*path, PUBLISHED.get(layer, layer) if path else layer, leaf))] = tensor
    return published


@lru_cache
def patch(folder: Path, name: str) -> ModelPatch:
    tensors = file(name, lllite(**PATCHES[name]) if name in SAID else KEYS[name])
    if name == "flux_uso":
        tensors = {f"feature_embedder.{key}": tensor for key, tensor in tensors.items()}
    path = folder / f"{name}.safetensors"
    save_file(as_published(tensors) if name in ("zimage_1", "zimage_20") else tensors, path, SAID.get(name))
    return ModelPatch(path.name, open_model_patch(Checkpoint(path)).load(CPU, torch.float32))


def controls(folder: Path, case: Case) -> tuple[ActiveModelControl, ...]:
    a, family = asked(case), backbone(folder, case.net)[0]
    names = filter(None, (case.patch, case.beside))
    return tuple(
        activated(
            ModelControl(
                Recipe("model_patch", "model_patches", name),
                VAE,
                case.strength,
                a.image,
                a.inpaint,
                a.mask,
                a.seen,
                *case.span,
            ),
            patch(folder, name),
            Vae(case.net == "qwen"),
            family,
            LEVELS,
        )
        for name in names
    )


def rows(folder: Path, case: Case, *, controlled: bool = True) -> list[Rows]:
    """Return what the backbone is asked, a row a piece."""
    family, _ = backbone(folder, case.net)
    a, made = asked(case), []
    active = controls(folder, case) if controlled else ()
    for i, sigma in enumerate(SIGMAS):
        x = a.x[i : i + 1]
        options = {"pooled_output": torch.zeros(1, 32)}
        inputs = family.inputs(a.text[i : i + 1], options, "positive", Canvas(x, x), CPU, Discrete())
        made.append(Rows(x, sigma, torch.tensor([sigma]), inputs, controls=active))
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_controlled_forward_is_comfyuis(folder: Path, case: Case) -> None:
    family, module = backbone(folder, case.net)
    FIGURES.assert_agrees(torch.cat(family.forward(module, rows(folder, case))), case.name, TOLERANCE)


@pytest.mark.parametrize("name", NETS)
def test_rows_under_several_controls_and_none_share_a_forward_and_change_no_other(folder: Path, name: str) -> None:
    family, module = backbone(folder, name)
    asked_for = [(case, with_control) for case in CASES if case.net == name for with_control in (True, False)]
    each = [rows(folder, case, controlled=with_control) for case, with_control in asked_for]
    groups: dict[object, list[int]] = {}
    for number, of_case in enumerate(each):
        groups.setdefault(family.group_key(of_case[0].x, of_case[0].inputs), []).append(number)
    assert max(map(len, groups.values())) > 3
    for group in groups.values():
        together = iter(family.forward(module, [row for number in group for row in each[number]]))
        for number in group:
            case, with_control = asked_for[number]
            figure = case.name if with_control else f"{case.name} without"
            FIGURES.assert_agrees(torch.cat([next(together) for _ in each[number]]), figure, TOLERANCE)


@pytest.mark.parametrize("name", PATCHES)
def test_a_control_of_another_family_says_what_each_is(folder: Path, name: str) -> None:
    mine, other = MADE_FOR[name.partition("_")[0]]
    family = backbone(folder, other)[0]
    control = ModelControl(Recipe("model_patch", "model_patches", name), VAE, 1.0, torch.zeros(1, 8, 8, 3))
    with pytest.raises(NodeError, match=rf"'{name}\.safetensors' is made for {mine}, and the model is {family.title}"):
        activated(control, patch(folder, name), Vae(), family, LEVELS)


@pytest.mark.parametrize("name", ["qwen_masked", "zimage_1", "zimage_2", "anima_hint"])
def test_a_control_without_an_image_is_an_error_that_asks_for_one(folder: Path, name: str) -> None:
    family = backbone(folder, name.partition("_")[0])[0]
    control = ModelControl(Recipe("model_patch", "model_patches", name), VAE, 1.0)
    with pytest.raises(NodeError, match=r"follows an image.*: connect one"):
        activated(control, patch(folder, name), Vae(), family, LEVELS)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ((), "reads SigLIP's image features: apply it by USOStyleReference"),
        ((torch.zeros(1, 4, 24),) * 3, "4 states 24 wide; 'flux_uso.safetensors' reads 9 states 24 wide"),
    ],
)
def test_a_style_of_another_encoder_is_refused(folder: Path, seen: tuple[Tensor, ...], message: str) -> None:
    family = backbone(folder, "flux")[0]
    control = ModelControl(Recipe("model_patch", "model_patches", "flux_uso"), None, 1.0, seen=seen)
    with pytest.raises(NodeError, match=message):
        activated(control, patch(folder, "flux_uso"), None, family, LEVELS)


def test_a_file_that_is_no_model_patch_says_which_are_known(folder: Path) -> None:
    path = folder / "other.safetensors"
    save_file({"vector_in.in_layer.weight": torch.zeros(1)}, path)
    with pytest.raises(
        ModelFileError, match=r"no model patch of a known layout \(it looks like .* Flux\.1\); supported"
    ):
        open_model_patch(Checkpoint(path))
