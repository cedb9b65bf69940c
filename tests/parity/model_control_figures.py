"""Make golden/model_controls.npz: what ComfyUI's backbones answer under its model patches, in `model_control_cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/model_control_figures.py. The names and shapes of the
weights go to golden/model_control_keys.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.anima.lllite  # noqa: E402
import comfy.ldm.anima.model  # noqa: E402
import comfy.ldm.flux.model  # noqa: E402
import comfy.ldm.lumina.controlnet  # noqa: E402
import comfy.ldm.lumina.model  # noqa: E402
import comfy.ldm.qwen_image.model  # noqa: E402
import comfy.ops  # noqa: E402
import comfy_extras.nodes_model_patch as patches  # noqa: E402

from tests.parity.dit_cases import ADAPTER, weights  # noqa: E402
from tests.parity.dit_control_cases import Vae  # noqa: E402
from tests.parity.model_control_cases import (  # noqa: E402
    CASES,
    NETS,
    PATCHES,
    SAID,
    SIGMAS,
    Asked,
    Case,
    asked,
    file,
    lllite,
)

WHERE = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
MODULES: dict[str, Any] = {
    "qwen": comfy.ldm.qwen_image.model.QwenImageTransformer2DModel,
    "zimage": comfy.ldm.lumina.model.NextDiT,
    "flux": comfy.ldm.flux.model.Flux,
    "anima": comfy.ldm.anima.model.Anima,
}
PATCH_MODULES: dict[str, Any] = {
    "qwen": patches.QwenImageBlockWiseControlNet,
    "zimage": comfy.ldm.lumina.controlnet.ZImage_Control,
    "flux": patches.SigLIPMultiFeatProjModel,
}


class SpatialVae(Vae):
    """The stand-in, as ComfyUI asks it."""

    def spacial_compression_encode(self) -> int:
        """Return the factor."""
        return self.factor


class Model:
    """What the node that applies a patch is given: it takes the patches down."""

    def __init__(self) -> None:
        self.patches: dict[str, list[Any]] = {}

    def clone(self) -> Model:
        """Return itself."""
        return self

    def set_model_double_block_patch(self, patch: Any) -> None:
        """Take one down."""
        self.patches.setdefault("double_block", []).append(patch)

    def set_model_post_input_patch(self, patch: Any) -> None:
        """Take one down."""
        self.patches.setdefault("post_input", []).append(patch)

    def get_model_object(self, name: str) -> Any:
        """Return what tells levels: a share of the sampling is one less of it."""
        return SimpleNamespace(percent_to_sigma=lambda share: 1 - share)

    def set_model_attn1_patch(self, patch: Any) -> None:
        """Take one down."""
        self.patches.setdefault("attn1_patch", []).append(patch)

    def set_model_attn2_patch(self, patch: Any) -> None:
        """Take one down."""
        self.patches.setdefault("attn2_patch", []).append(patch)

    def set_model_patch(self, patch: Any, name: str) -> None:
        """Take one down."""
        self.patches.setdefault(name, []).append(patch)

    def set_model_noise_refiner_patch(self, patch: Any) -> None:
        """Take one down."""
        self.patches.setdefault("noise_refiner", []).append(patch)


def shapes(module: Any) -> dict[str, list[int]]:
    """Return the names and shapes of its weights."""
    return {key: list(value.shape) for key, value in module.state_dict().items()}


def answer(net: Any, case: Case, a: Asked, options: dict[str, Any]) -> Any:
    """Return what a backbone answers."""
    sigma = torch.tensor(SIGMAS)
    if case.net == "flux":
        return net(
            a.x, sigma, a.text, y=torch.zeros(2, 32), guidance=torch.full((2,), 3.5), transformer_options=options
        )
    if case.net == "zimage":
        return net(a.x, sigma, a.text, a.text.shape[1], transformer_options=options)
    if case.net == "anima":
        # It reads one level of all rows.
        each = [
            net(
                a.x[i : i + 1], sigma[i : i + 1], a.text[i : i + 1], transformer_options={**options, "sigmas": sigma[i]}
            )
            for i in range(2)
        ]
        return torch.cat(each)
    return net(a.x, sigma, a.text, transformer_options=options)


def patch_module(name: str) -> Any:
    """Return a patch, with its weights."""
    if name.startswith("anima"):
        tensors = file(name, lllite(**PATCHES[name]))
        net = comfy.ldm.anima.lllite.AnimaLLLite(tensors, SAID[name], **WHERE)
        net.load_state_dict(tensors)
        return net
    net = PATCH_MODULES[name.partition("_")[0]](**PATCHES[name], **WHERE)
    net.load_state_dict(file(name, shapes(net)))
    return net


def main() -> None:
    nets = {name: MODULES[name](**arguments, **WHERE) for name, arguments in NETS.items()}
    beside = {name: patch_module(name) for name in PATCHES}
    nets["anima"].llm_adapter = comfy.ldm.anima.model.LLMAdapter(**ADAPTER, **WHERE)
    for net in nets.values():
        net.load_state_dict(weights(shapes(net)))
    answers: dict[str, Any] = {}
    with torch.inference_mode():
        for case in CASES:
            a, model = asked(case), Model()
            for name in filter(None, (case.patch, case.beside)):
                if case.net == "flux":
                    low, mid, high = (states.expand(2, -1, -1) for states in a.seen)
                    # It counts the layers from the end.
                    layers = torch.stack([low, *[mid] * 9, *[high] * 10], dim=1)
                    seen = SimpleNamespace(all_hidden_states=layers, penultimate_hidden_states=high)
                    patches.USOStyleReference().apply_patch(model, SimpleNamespace(model=beside[name]), seen)
                    continue
                if case.net == "anima":
                    patches.AnimaLLLiteApply().apply_patch(
                        model, SimpleNamespace(model=beside[name]), a.image, case.strength, *case.span, mask=a.mask
                    )
                    continue
                patches.ZImageFunControlnet().diffsynth_controlnet(
                    model,
                    SimpleNamespace(model=beside[name]),
                    SpatialVae(case.net == "qwen"),
                    a.image,
                    case.strength,
                    a.inpaint,
                    a.mask,
                )
            answers[case.name] = answer(nets[case.net], case, a, {"patches": model.patches}).numpy()
            answers[f"{case.name} without"] = answer(nets[case.net], case, a, {}).numpy()
    keys = {name: shapes(net) for name, net in (nets | beside).items() if name not in SAID}
    (GOLDEN / "model_control_keys.json").write_text(json.dumps(keys, indent=0))
    np.savez_compressed(GOLDEN / "model_controls.npz", **answers)


main()
