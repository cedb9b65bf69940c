"""ComfyUI's latents under the ControlNet nodes on mini15."""

from __future__ import annotations

import pytest

from tests.parity.checkpoints import models_dir
from tests.parity.figures import Figures
from tests.parity.stack import Stack
from tests.parity.workflow import EMPTY, Nodes, ksampler, models

FIGURES = Figures("mini15")
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
