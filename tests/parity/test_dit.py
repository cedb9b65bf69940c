"""Diffusion transformers against ComfyUI's modules, with the same weights, in float32."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from serve_app.models.families.dit.anima import IDS, WEIGHTS
from serve_app.models.families.dit.hidream import STATES
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from tests.parity.dit_cases import CASES, NETS, Case, asked, llama_states, t5_tokens, weights
from tests.parity.figures import GOLDEN, Figures, module_tolerance

CPU = torch.device("cpu")
FIGURES = Figures("dit")
KEYS = json.loads((GOLDEN / "dit_keys.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("dit")
    yield folder
    network.cache_clear()


@lru_cache
def network(folder: Path, name: str) -> tuple[BackboneFamily, nn.Module]:
    path = folder / f"{name}.safetensors"
    save_file(weights(KEYS[name]), path)
    family, module = Checkpoint(path).load("backbone")
    assert isinstance(family, BackboneFamily)
    return family, module


def rows(folder: Path, case: Case) -> list[Rows]:
    """Return what the network is asked, a row a piece, as a run would ask it."""
    family, _ = network(folder, case.net)
    a, made = asked(case), []
    for i in range(len(a.x)):
        options: dict[str, Any] = {"pooled_output": a.pooled[i : i + 1], "guidance": float(a.guidance[i])}
        if a.references:
            options["reference_latents"] = a.references
        if case.method:
            options["reference_latents_method"] = case.method
        if (tokens := t5_tokens(case)) is not None:
            options |= {IDS: tokens[0][i], WEIGHTS: tokens[1][i]}
        if case.net.startswith("pixart") and case.method:
            options["height"], options["width"] = map(int, case.method.split())
        if case.net == "hidream":
            options[STATES] = llama_states(case)[i : i + 1]
        if a.concat is not None:
            options["concat_latent_image"] = a.concat
        if a.mask is not None:
            options["concat_mask"] = a.mask
        x = a.x[i : i + 1]
        inputs = family.inputs(a.text[i : i + 1], options, "positive", Canvas(x, x), CPU, Discrete())
        made.append(Rows(x, float(a.sigma[i]), a.sigma[i : i + 1], inputs))
    return made


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_forward_is_comfyuis(folder: Path, case: Case) -> None:
    family, module = network(folder, case.net)
    tolerance = module_tolerance(KEYS[case.net])
    FIGURES.assert_agrees(torch.cat(family.forward(module, rows(folder, case))), case.name, tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("net", sorted({case.net for case in CASES}))
def test_time_reaches_a_network_in_half_precision_unrounded(folder: Path, net: str) -> None:
    """A rounded time moves the answers by a tenth to a half; all the other rounding by some hundredths."""
    case = next(case for case in CASES if case.net == net)
    family, module = network(folder, net)
    half = copy.deepcopy(module).to(torch.bfloat16)
    FIGURES.assert_agrees(torch.cat(family.forward(half, rows(folder, case))), f"bf16 {case.name}", 0.03)


@torch.inference_mode()
@pytest.mark.parametrize("name", NETS)
def test_rows_of_several_cases_in_one_forward_are_comfyuis(folder: Path, name: str) -> None:
    family, module = network(folder, name)
    tolerance = module_tolerance(KEYS[name])
    groups: dict[object, list[tuple[Case, list[Rows]]]] = {}
    for case in (case for case in CASES if case.net == name):
        asked_for = rows(folder, case)
        groups.setdefault(family.group_key(asked_for[0].x, asked_for[0].inputs), []).append((case, asked_for))
    for group in groups.values():
        together = iter(family.forward(module, [row for _, of_case in group for row in of_case]))
        for case, of_case in group:
            FIGURES.assert_agrees(torch.cat([next(together) for _ in of_case]), case.name, tolerance)
