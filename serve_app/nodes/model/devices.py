"""The nodes that choose a device for a model. Where a model runs is a pool's matter here: they change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.nodes.dynamic_inputs import combo
from serve_app.recipe import Recipe

CATEGORY = "advanced/multigpu"


def _select(kind: str, devices: list[str]) -> type:
    name = kind.lower()

    class SelectDevice:
        """A model as it is."""

        RETURN_TYPES = (kind,)
        FUNCTION = "select"
        CATEGORY = CATEGORY
        DESCRIPTION = "Passes the model on: the server's configuration says on which device it runs."

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {name: (kind, {}), "device": combo(devices)}}

        def select(self, device: str, **given: Recipe) -> tuple[Recipe]:
            return (given[name],)

    return SelectDevice


class MultiGPUWorkUnits:
    """A diffusion model as it is."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "split"
    CATEGORY = CATEGORY
    DESCRIPTION = "Passes the model on: each run stays on one card here, and other jobs have the others."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL", {}), "max_gpus": ("INT", {"default": 2, "min": 1, "step": 1})}}

    def split(self, model: Recipe, max_gpus: int) -> tuple[Recipe]:
        return (model,)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "SelectModelDevice": _select("MODEL", ["default", "cpu"]),
    "SelectCLIPDevice": _select("CLIP", ["default", "cpu"]),
    "SelectVAEDevice": _select("VAE", ["default"]),
    "MultiGPU_WorkUnits": MultiGPUWorkUnits,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "SelectModelDevice": "Select Model Device",
    "SelectCLIPDevice": "Select CLIP Device",
    "SelectVAEDevice": "Select VAE Device",
    "MultiGPU_WorkUnits": "MultiGPU CFG Split",
}
