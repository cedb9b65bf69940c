"""Make golden/vision.npz: what ComfyUI's image encoders, style models and unCLIP make of the cases of `vision_cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/vision_figures.py. golden/vision_keys.json gets the
names and shapes of each network's weights.
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
from torch import Tensor

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.clip_vision  # noqa: E402
import comfy.latent_formats  # noqa: E402
import comfy.ldm.flux.model  # noqa: E402
import comfy.ldm.flux.redux  # noqa: E402
import comfy.ldm.modules.encoders.noise_aug_modules  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.t2i_adapter.adapter  # noqa: E402
import nodes  # noqa: E402

from tests.parity.dit_cases import GUIDANCE, NETS, POOLED_WIDTH, SIGMAS, noise, weights  # noqa: E402
from tests.parity.vision_cases import (  # noqa: E402
    ADAPTER,
    ENCODERS,
    LOOKS,
    OPEN_CLIP,
    POOLED,
    REDUX,
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

AUGMENTS = {"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
SEEN = ("last_hidden_state", "penultimate_hidden_states", "image_embeds")


def thinned(tensor: Tensor) -> np.ndarray:
    """Return a tensor flat, and of a large one some thousands of elements."""
    flat = tensor.float().numpy().ravel()
    return flat[:: max(1, flat.size // 2000)]


def shapes(net: Any) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in net.state_dict().items()}


def seen(keys: dict[str, Any]) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for name, config in ENCODERS.items():
        encoder = comfy.clip_vision.ClipVisionModel(config)
        encoder.model.float()
        keys[name] = shapes(encoder.model)
        drawn = weights(keys[name])
        if name in OPEN_CLIP:
            drawn = comfy.clip_vision.convert_to_transformers(open_clip(drawn, OPEN_CLIP[name]), OPEN_CLIP[name])
        encoder.model.load_state_dict(drawn)
        for looking, image, crop in LOOKS:
            if looking == name:
                output = encoder.encode_image(picture(image), crop=crop)
                parts = {part: output[part] for part in SEEN}
                if hasattr(output, "all_hidden_states"):
                    # What its node of USO's style reads beside the penultimate.
                    parts["style_hidden_states"] = output.all_hidden_states[:, [-20, -11]]
                made |= {f"{name}|{image}|{crop}|{part}": thinned(tensor) for part, tensor in parts.items()}
    return made


def styled(keys: dict[str, Any]) -> dict[str, np.ndarray]:
    models: dict[str, Any] = {
        "redux": comfy.ldm.flux.redux.ReduxImageEncoder(**REDUX),
        "adapter": comfy.t2i_adapter.adapter.StyleAdapter(**ADAPTER),
    }
    net = comfy.ldm.flux.model.Flux(
        **NETS["flux"], dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init
    )
    net.load_state_dict(weights({key: value.shape for key, value in net.state_dict().items()}))
    for name, model in models.items():
        keys[name] = shapes(model)
        model.load_state_dict(weights(keys[name]))
    return {key: array for case in STYLED for key, array in of_case(case, models[case.style], net).items()}


def of_case(case: Styled, model: Any, net: Any) -> dict[str, np.ndarray]:
    conditioning: Any = [[noise(f"{case.style} text", TEXTS[case.style])[:1], {}]]
    for number, (strength, kind) in enumerate(case.applied):
        output = SimpleNamespace(last_hidden_state=noise(f"{case.style} states {number}", STATES[case.style]))
        [conditioning] = nodes.StyleModelApply().apply_stylemodel(
            conditioning, comfy.sd.StyleModel(model), output, strength, kind
        )
    [[text, options]] = conditioning
    made = {f"{case.name}|text": text.numpy()}
    if "attention_mask" in options:
        made[f"{case.name}|mask"] = options["attention_mask"].numpy()
    if case.style != "redux":
        return made
    x = noise(f"{case.name} x", (1, 16, *case.size))
    config = SimpleNamespace(unet_config=NETS["flux"])
    stub = type("Stub", (comfy.model_base.Flux,), {"__init__": lambda self: None})()
    for attribute, value in (
        ("diffusion_model", net),
        ("model_config", config),
        ("latent_format", comfy.latent_formats.Flux()),
        ("adm_channels", POOLED_WIDTH),
        ("concat_keys", ()),
    ):
        object.__setattr__(stub, attribute, value)
    said = stub.extra_conds(noise=x, device=x.device, cross_attn=text, guidance=GUIDANCE[0], **options)
    told = {"attention_mask": said["attention_mask"].cond.float()} if "attention_mask" in said else {}
    sigma, guidance = torch.tensor(SIGMAS[:1]), torch.tensor(GUIDANCE[:1])
    made[f"{case.name}|answer"] = net(
        x, sigma, text, noise(f"{case.name} pooled", (1, POOLED_WIDTH)), guidance, **told
    ).numpy()
    return made


def embeds(name: str, width: int) -> list[dict[str, Any]]:
    return [
        {
            "clip_vision_output": SimpleNamespace(image_embeds=noise(f"{name} {width} {number}", (images, width))),
            "strength": strength,
            "noise_augmentation": augmentation,
        }
        for number, (images, strength, augmentation) in enumerate(UNCLIP[name])
    ]


def unclip() -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    augment = comfy.ldm.modules.encoders.noise_aug_modules.CLIPEmbeddingNoiseAugmentation
    for width in WIDTHS:
        model = SimpleNamespace(
            adm_channels=2 * width, noise_augmentor=augment(noise_schedule_config=AUGMENTS, timestep_dim=width)
        )
        for name in UNCLIP:
            told = {"unclip_conditioning": embeds(name, width), "device": "cpu", "seed": SEED}
            made[f"unclip|{width}|{name}"] = comfy.model_base.SD21UNCLIP.encode_adm(model, **told).numpy()
    embedder = comfy.model_base.Timestep(256)
    sdxl = SimpleNamespace(
        embedder=embedder, noise_augmentor=augment(noise_schedule_config=AUGMENTS, timestep_dim=POOLED)
    )
    for name in UNCLIP:
        told = {"unclip_conditioning": embeds(name, POOLED), "device": "cpu", "seed": SEED}
        sizes = {"width": 768, "height": 512, "pooled_output": torch.zeros(1, POOLED)}
        made[f"sdxl|{name}"] = comfy.model_base.SDXL.encode_adm(sdxl, **told, **sizes).numpy()
    return made


def main() -> None:
    keys: dict[str, Any] = {}
    with torch.inference_mode():
        arrays: Any = {**seen(keys), **styled(keys), **unclip()}
    (GOLDEN / "vision_keys.json").write_text(json.dumps(keys, indent=0))
    np.savez_compressed(GOLDEN / "vision.npz", **arrays)


main()
