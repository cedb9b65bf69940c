"""The nodes that choose a device for a model. They change nothing: the pool decides where models run."""

from __future__ import annotations

from typing import Annotated

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Combo, Int
from serve_app.nodes.sockets import CLIP, MODEL, VAE

CATEGORY = "advanced/multigpu"
DESCRIPTION = "Passes the model on: the server's configuration says on which device it runs."


@node("SelectModelDevice", "Select Model Device", category=CATEGORY, function="select", description=DESCRIPTION)
def select_model_device(model: MODEL, device: Annotated[str, Combo(["default", "cpu"])]) -> MODEL:
    """A model as it is."""
    return model


@node("SelectCLIPDevice", "Select CLIP Device", category=CATEGORY, function="select", description=DESCRIPTION)
def select_clip_device(clip: CLIP, device: Annotated[str, Combo(["default", "cpu"])]) -> CLIP:
    """A model as it is."""
    return clip


@node("SelectVAEDevice", "Select VAE Device", category=CATEGORY, function="select", description=DESCRIPTION)
def select_vae_device(vae: VAE, device: Annotated[str, Combo(["default"])]) -> VAE:
    """A model as it is."""
    return vae


@node(
    "MultiGPU_WorkUnits",
    "MultiGPU CFG Split",
    category=CATEGORY,
    function="split",
    description="Passes the model on: each run stays on one card here, and other jobs have the others.",
)
def multi_gpu_work_units(model: MODEL, max_gpus: Annotated[int, Int(2, min=1, step=1)]) -> MODEL:
    """A diffusion model as it is."""
    return model
