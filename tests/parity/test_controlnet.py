"""The ControlNet nodes against ComfyUI 0.3.64: what they declare, and its latents under them on mini15."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve_app.graph.spec import Input
from serve_app.nodes.registry import BUILTIN, specs
from tests.parity.checkpoints import models_dir
from tests.parity.figures import GOLDEN, Figures
from tests.parity.stack import Stack
from tests.parity.workflow import EMPTY, Nodes, ksampler, models

FIGURES = Figures("mini15")
DECLARED: dict[str, Any] = json.loads((GOLDEN / "nodes_control.json").read_text())
MODELS = models("mini15")


class Hint:
    """The hint that ComfyUI was given."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "get"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def get(self):
        return (FIGURES["vae|image"],)


NET: Nodes = {"hint": ("Hint", {}), "net": ("ControlNetLoader", {"control_net_name": "controlnet.safetensors"})}
APPLIED = {"control_net": ["net", 0], "image": ["hint", 0]}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(models_dir("mini15", "controlnet"), tmp_path_factory.mktemp("files"), {"Hint": Hint})
    yield stack
    stack.engine.close()


async def test_both_branches_under_a_controlnet_give_comfyuis_latents(stack):
    figure = "controlnet|advanced|euler|karras|4|5.0|51"
    share = {"strength": 0.7, "start_percent": 0.0, "end_percent": 0.8}
    both = {"positive": ["positive", 0], "negative": ["negative", 0]}
    applied = {"under": ("ControlNetApplyAdvanced", {**APPLIED, **share, **both})}
    sampled = ksampler(figure.removeprefix("controlnet|"), positive=["under", 0], negative=["under", 1])
    latent = await stack.run("sampled", **MODELS, **EMPTY, **NET, **applied, sampled=sampled)
    FIGURES.assert_agrees(latent["samples"], figure)


async def test_a_positive_under_a_controlnet_takes_the_negative_with_it_as_in_comfyui(stack):
    figure = "controlnet|simple|euler|karras|4|5.0|52"
    applied = {"under": ("ControlNetApply", {**APPLIED, "conditioning": ["positive", 0], "strength": 0.9})}
    sampled = ksampler(figure.removeprefix("controlnet|"), positive=["under", 0])
    latent = await stack.run("sampled", **MODELS, **EMPTY, **NET, **applied, sampled=sampled)
    FIGURES.assert_agrees(latent["samples"], figure)


async def test_a_run_under_a_controlnet_differs_from_one_without(stack):
    figure = "controlnet|simple|euler|karras|4|5.0|52"
    latent = await stack.run("sampled", **MODELS, **EMPTY, sampled=ksampler(figure.removeprefix("controlnet|")))
    assert FIGURES.error(latent["samples"], figure) > 0.01


def wire(declared: Input) -> list[Any]:
    choices = [list(declared.choices)] if declared.choices is not None else [declared.type]
    return [*choices, dict(declared.options)] if declared.options else choices


@pytest.mark.parametrize("name", DECLARED)
def test_a_node_declares_what_comfyui_declares(name: str) -> None:
    theirs, ours = DECLARED[name], specs()[name]
    for section in ("required", "optional"):
        declared = {i.name: wire(i) for i in ours.inputs if i.section == section}
        assert list(declared.items()) == list(theirs["input"].get(section, {}).items())
    assert list(ours.outputs) == theirs["output"]
    assert list(ours.output_names) == theirs["output_name"]
    assert ours.category == theirs["category"]
    assert ours.display_name == theirs["display_name"]
    assert getattr(BUILTIN[name], "DEPRECATED", False) == theirs["deprecated"]
