"""ControlNets of diffusion transformers against ComfyUI's, with the same weights, in float32."""

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

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.control.control import activated
from serve_app.models.control.dit_control_file import open_control
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.recipe.controls import HintKind
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete, Flow
from serve_app.sampling.denoiser import trained
from serve_app.sampling.forward import Canvas
from serve_app.values import Conditioning, Control
from tests.parity.dit_cases import weights
from tests.parity.dit_control_cases import CASES, GUIDANCE, NETS, SIGMA, TIMES, Case, Vae, asked, file
from tests.parity.figures import GOLDEN, Figures, module_tolerance
from tests.unit.models.control_nets import ARCHITECTURE, control_net

CPU = torch.device("cpu")
FIGURES = Figures("dit_controls")
BACKBONES = json.loads((GOLDEN / "dit_controlled_keys.json").read_text())
VAE = Recipe("vae", "vae", "vae")
LEVELS = trained(Flow(1.0, 1.0))[0]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("controls")
    with torch.inference_mode():
        yield folder
    backbone.cache_clear()
    net.cache_clear()


@lru_cache
def backbone(folder: Path, name: str) -> tuple[BackboneFamily, nn.Module]:
    path = folder / f"{name}.safetensors"
    save_file(weights(BACKBONES[name]), path)
    family, module = Checkpoint(path).load("backbone")
    assert isinstance(family, BackboneFamily)
    return family, module


@lru_cache
def net(folder: Path, control: str, says: int | None) -> Any:
    case = next(case for case in CASES if (case.control, case.says) == (control, says))
    path = folder / f"{control}_{says}.safetensors"
    save_file(file(case), path)
    module: Any = open_control(Checkpoint(path)).load(CPU, torch.float32)
    return module.control_net(path.stem, path.name)


def rows(folder: Path, case: Case, *, controlled: bool = True) -> list[Rows]:
    """Return what the backbone is asked, a row a piece."""
    family, _ = backbone(folder, case.net)
    a, made = asked(case), []
    recipe = Recipe("controlnet", "controlnet", case.control, (HintKind(case.kind),))
    control = Control(recipe, a.hint, case.strength, vae=VAE, mask=a.mask)
    for i in range(2):
        options: dict[str, Any] = {"pooled_output": a.pooled[i : i + 1], "guidance": GUIDANCE[i]}
        if controlled:
            options["control"] = control
        conds: dict[str, Conditioning] = {"positive": [(a.text[i : i + 1], options)]}
        nets = {recipe: net(folder, case.control, case.says)}
        ((text, told),) = activated(conds, nets, family, LEVELS, {VAE: Vae(case.net == "qwen")})["positive"]
        x = a.x[i : i + 1]
        inputs = family.inputs(text, told, "positive", Canvas(x, x), CPU, Discrete())
        made.append(Rows(x, SIGMA, torch.tensor([SIGMA * TIMES[case.net]]), inputs))
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_controlled_forward_is_comfyuis(folder: Path, case: Case) -> None:
    family, module = backbone(folder, case.net)
    tolerance = module_tolerance(BACKBONES[case.net])
    FIGURES.assert_agrees(torch.cat(family.forward(module, rows(folder, case))), case.name, tolerance)


@pytest.mark.parametrize("name", NETS)
def test_rows_under_several_controls_and_none_share_a_forward_and_change_no_other(folder: Path, name: str) -> None:
    family, module = backbone(folder, name)
    tolerance = module_tolerance(BACKBONES[name])
    cases = [case for case in CASES if case.net == name and case.size == (8, 8)]
    asked_for = [(case, with_control) for case in cases for with_control in (True, False)]
    each = [rows(folder, case, controlled=with_control) for case, with_control in asked_for]
    groups: dict[object, list[int]] = {}
    for number, of_case in enumerate(each):
        groups.setdefault(family.group_key(of_case[0].x, of_case[0].inputs), []).append(number)
    assert max(map(len, groups.values())) > 4
    for group in groups.values():
        together = iter(family.forward(module, [row for number in group for row in each[number]]))
        for number in group:
            case, with_control = asked_for[number]
            figure = case.name if with_control else f"{case.name} without"
            FIGURES.assert_agrees(torch.cat([next(together) for _ in each[number]]), figure, tolerance)


@pytest.mark.parametrize("case", [case for case in CASES if case.control in ("sd3_large", "sd3_diffusers")][:3])
def test_a_control_that_reads_latents_asks_for_a_vae(folder: Path, case: Case) -> None:
    family, _ = backbone(folder, case.net)
    recipe = Recipe("controlnet", "controlnet", case.control)
    conds: dict[str, Conditioning] = {
        "positive": [(asked(case).text, {"control": Control(recipe, asked(case).hint, 1)})]
    }
    with pytest.raises(NodeError, match="reads its hint as latents of 16 channels: connect a VAE"):
        activated(conds, {recipe: net(folder, case.control, case.says)}, family, LEVELS)


def test_a_control_of_another_family_says_what_each_is(folder: Path) -> None:
    sd3, _ = backbone(folder, "sd3")
    recipe = Recipe("controlnet", "controlnet", "other")
    conds: dict[str, Conditioning] = {
        "positive": [(torch.zeros(1, 1, 1), {"control": Control(recipe, torch.zeros(1, 8, 8, 3), 1)})]
    }
    large = net(folder, "sd3_large", 1)
    with pytest.raises(
        NodeError,
        match=r"'sd3_large_1\.safetensors' is made for Stable Diffusion 3, and the model is Stable Diffusion 1\.x",
    ):
        activated(conds, {recipe: large}, ARCHITECTURE, LEVELS)
    with pytest.raises(
        NodeError, match=r"'net1\.safetensors' is made for Stable Diffusion 1\.x.*, and the model is Stable Diffusion 3"
    ):
        activated(conds, {recipe: control_net(1)}, sd3, LEVELS)


def test_a_kind_of_hint_that_a_control_does_not_know_is_refused(folder: Path) -> None:
    family, _ = backbone(folder, "flux")
    recipe = Recipe("controlnet", "controlnet", "union", (HintKind(5),))
    control = Control(recipe, torch.zeros(1, 8, 8, 3), 1, vae=VAE)
    conds: dict[str, Conditioning] = {"positive": [(torch.zeros(1, 1, 48), {"control": control})]}
    with pytest.raises(NodeError, match="knows 5 kinds of hint, and kind 5 is not one of them"):
        activated(conds, {recipe: net(folder, "flux_union", None)}, family, LEVELS, {VAE: Vae()})


def test_a_file_that_lacks_a_tensor_is_refused_by_name(folder: Path) -> None:
    tensors = file(next(case for case in CASES if case.control == "flux_doubles"))
    del tensors["controlnet_blocks.4.bias"]
    path = folder / "damaged.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=r"lacks 1 tensors of its network, 'controlnet_blocks\.4\.bias' first"):
        open_control(Checkpoint(path)).load(CPU, torch.float32)
