"""Make golden/dit_controls.npz: what ComfyUI's backbones answer under its ControlNets, in `dit_control_cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/dit_control_figures.py. The names and shapes of the
backbones' weights go to golden/dit_controlled_keys.json.
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

import comfy.controlnet  # noqa: E402
import comfy.latent_formats  # noqa: E402
import comfy.ldm.flux.model  # noqa: E402
import comfy.ldm.modules.diffusionmodules.mmdit as mmdit  # noqa: E402
import comfy.ldm.qwen_image.controlnet  # noqa: E402
import comfy.ldm.qwen_image.model  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.utils  # noqa: E402

from tests.parity.dit_cases import weights  # noqa: E402
from tests.parity.dit_control_cases import CASES, GUIDANCE, NETS, SIGMA, TIMES, Case, Vae, asked, file  # noqa: E402

MODULES: dict[str, Any] = {
    "sd3": mmdit.OpenAISignatureMMDITWrapper,
    "flux": comfy.ldm.flux.model.Flux,
    "qwen": comfy.ldm.qwen_image.model.QwenImageTransformer2DModel,
}


def backbone(name: str) -> Any:
    """Return ComfyUI's module with its weights."""
    where = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    net = MODULES[name](**NETS[name], **where)
    net.load_state_dict(weights({key: value.shape for key, value in net.state_dict().items()}))
    return net


def loaded_file(case: Case) -> Any:
    """Return ComfyUI's ControlNet as it makes it of a file."""
    return comfy.controlnet.load_controlnet_state_dict(file(case))


def instantx(case: Case) -> Any:
    """Return ComfyUI's ControlNet of Qwen-Image, as its loader makes it, which knows one width alone."""
    tensors = file(case)
    more = tensors["controlnet_x_embedder.weight"].shape[1] - 64
    layers = sum(name.startswith("controlnet_blocks.") for name in tensors) // 2
    net = comfy.ldm.qwen_image.controlnet.QwenImageControlNetModel(
        extra_condition_channels=more,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
        **{**NETS["qwen"], "num_layers": layers},
    )
    net.load_state_dict(tensors)
    return comfy.controlnet.ControlNet(
        net, compression_ratio=1, latent_format=comfy.latent_formats.Wan21(), concat_mask=more > 0, extra_conds=[]
    )


def control(case: Case) -> Any:
    """Return ComfyUI's ControlNet with its hint. Errors: AssertionError if a tensor is missing from its file."""
    loaded = instantx(case) if case.control in ("qwen_union", "qwen_masked") else loaded_file(case)
    a = asked(case)
    image, beside = a.hint, []
    if a.mask is not None and loaded.concat_mask:
        # As ControlNetInpaintingAliMamaApply does.
        kept = 1.0 - a.mask.reshape((-1, 1, *a.mask.shape[-2:]))
        seen = comfy.utils.common_upscale(kept, image.shape[2], image.shape[1], "bilinear", "center").round()
        image = image * seen.movedim(1, -1)
        beside = [kept]
    if case.kind is not None:
        loaded.set_extra_arg("control_type", [case.kind])
    vae = Vae(case.net == "qwen") if loaded.latent_format is not None else None
    return loaded.set_cond_hint(image.movedim(-1, 1), case.strength, vae=vae, extra_concat=beside)


def main() -> None:
    answers: dict[str, Any] = {}
    with torch.inference_mode():
        nets = {name: backbone(name) for name in NETS}
        for case in CASES:
            a, net, times = asked(case), nets[case.net], TIMES[case.net]
            sampling = SimpleNamespace(timestep=lambda t, k=times: t * k, calculate_input=lambda t, x: x)
            applied = control(case)
            applied.pre_run(SimpleNamespace(model_sampling=sampling, diffusion_model=net), lambda share: 1.0 - share)
            sigma, told = torch.full((2,), SIGMA), {"y": a.pooled}
            if case.net == "flux":
                told["guidance"] = torch.tensor(GUIDANCE)
            added = applied.get_control(a.x, sigma, {"c_crossattn": a.text, **told}, 1, {})
            answers[case.name] = net(a.x, sigma * times, context=a.text, control=added, **told).numpy()
            answers[f"{case.name} without"] = net(a.x, sigma * times, context=a.text, **told).numpy()
    shapes = {name: {key: list(v.shape) for key, v in net.state_dict().items()} for name, net in nets.items()}
    (GOLDEN / "dit_controlled_keys.json").write_text(json.dumps(shapes, indent=0))
    np.savez_compressed(GOLDEN / "dit_controls.npz", **answers)


main()
