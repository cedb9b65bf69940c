"""Workflows on a small UNet that are compared with ComfyUI's, by name: group|what makes it differ.

Patches of layers, guidance by second looks, reused steps, hooks, and each sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zlib import crc32

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve_app.models.families import Sd
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.sampling.schedules.sigmas import SCHEDULES
from tests.parity.cases import MINI15, Case, sampled
from tests.parity.checkpoints import models_dir
from tests.parity.figures import LATER_SAMPLERS
from tests.parity.workflow import Nodes
from tests.unit.models.sample import random_tensors

UNET = Sd((64, 128), (1, 1), (1, 1), 1, 768)
SMALL: Nodes = {**MINI15, "small": ("SmallModel", {"name": "small.safetensors"})}

WIDE: Nodes = {"latent": ("EmptyLatentImage", {"width": 128, "height": 96, "batch_size": 2})}
TILES = {"tile_size": 32, "swap_size": 3, "max_depth": 1, "scale_depth": False}
BOTH = {"positive": ["positive", 0], "negative": ["negative", 0]}
Node = tuple[str, dict[str, Any]]


def models() -> Path:
    """Return a directory with mini15, its ControlNet, a small UNet, and LoRAs of both."""
    folder = models_dir("mini15", "lora", "controlnet")
    checkpoints, loras = folder / "checkpoints", folder / "loras"
    _write(checkpoints / "small.safetensors", lambda: random_tensors(UNET, torch.float32))
    _write(checkpoints / "small_other.safetensors", lambda: _other(random_tensors(UNET, torch.float32)))
    _write(loras / "small_lora.safetensors", lambda: _small_lora(load_file(loras / "lora.safetensors")))
    _write(folder / "gligen" / "small_gligen.safetensors", small_gligen)
    return folder


def _write(path: Path, make: Callable[[], dict[str, Tensor]]) -> None:
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        save_file(make(), unfinished)
        unfinished.replace(path)


def _other(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return other tensors of the same network."""
    return {name: tensor * (1 + 0.2 * _drawn(f"{name} other", *tensor.shape)) for name, tensor in tensors.items()}


def _small_lora(of_mini15: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA of mini15's text encoder and of some attention of the small UNet."""
    made = {name: tensor for name, tensor in of_mini15.items() if name.startswith("lora_te")}
    for block, width in (("down_blocks_0", 64), ("down_blocks_1", 128), ("mid_block", 128), ("up_blocks_1", 64)):
        for layer in ("attn1_to_q", "attn1_to_v", "attn1_to_out_0", "attn2_to_q"):
            name = f"lora_unet_{block}_attentions_0_transformer_blocks_0_{layer}"
            made[f"{name}.lora_down.weight"] = _drawn(f"{name} down", 4, width) / width**0.5
            made[f"{name}.lora_up.weight"] = _drawn(f"{name} up", width, 4) / 2
            made[f"{name}.alpha"] = torch.tensor(4.0)
    return made


def small_gligen() -> dict[str, Tensor]:
    """Return a GLIGEN model of the small UNet, named as in the published file."""
    widths = {"input_blocks.1": 64, "input_blocks.3": 128, "middle_block": 128}
    widths |= {f"output_blocks.{number}": 128 if number < 2 else 64 for number in range(4)}
    shapes: dict[str, tuple[int, ...]] = {}
    for block, width in widths.items():
        fuser = f"{block}.1.transformer_blocks.0.fuser"
        shapes |= {f"{fuser}.attn.to_{part}.weight": (width, width) for part in "qkv"}
        shapes |= {f"{fuser}.attn.to_out.0.weight": (width, width), f"{fuser}.attn.to_out.0.bias": (width,)}
        shapes |= {f"{fuser}.ff.net.0.proj.weight": (8 * width, width), f"{fuser}.ff.net.0.proj.bias": (8 * width,)}
        shapes |= {f"{fuser}.ff.net.2.weight": (width, 4 * width), f"{fuser}.ff.net.2.bias": (width,)}
        shapes |= {f"{fuser}.linear.weight": (width, 768), f"{fuser}.linear.bias": (width,)}
        shapes |= {f"{fuser}.{norm}.{kind}": (width,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= {f"{fuser}.alpha_{gate}": () for gate in ("attn", "dense")}
    for number, (inputs, outputs) in enumerate([(768 + 64, 512), (512, 512), (512, 768)]):
        linear = f"position_net.linears.{2 * number}"
        shapes |= {f"{linear}.weight": (outputs, inputs), f"{linear}.bias": (outputs,)}
    shapes |= {"position_net.null_positive_feature": (768,), "position_net.null_position_feature": (64,)}
    return {name: _drawn(name, *shape) / (shape[1] ** 0.5 if shape[1:] else 1) for name, shape in shapes.items()}


def _boxed(*boxes: tuple[str, int, int, int, int], **nodes: Node) -> Case:
    """A run with texts in boxes, (text, width, height, x, y) in pixels. nodes: one of them, `last`, is its positive."""
    given: Nodes = {**SMALL, **WIDE, "gligen": ("GLIGENLoader", {"gligen_name": "small_gligen.safetensors"})}
    before = "positive"
    for number, (text, width, height, x, y) in enumerate(boxes):
        box = {"text": text, "width": width, "height": height, "x": x, "y": y}
        links = {"conditioning_to": [before, 0], "clip": ["checkpoint", 1], "gligen_textbox_model": ["gligen", 0]}
        before = f"box{number}"
        given[before] = ("GLIGENTextBoxApply", {**links, **box})
    run = sampled("euler", "karras", seed=85, model=["small", 0], positive=["last" if nodes else before, 0])
    return Case({**given, **nodes, "k": run})


def _drawn(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))


def _patched(*patches: Node, wide: bool = True, **changes: Any) -> Case:
    nodes, model = {**SMALL, **(WIDE if wide else {})}, ["small", 0]
    for i, (kind, inputs) in enumerate(patches):
        nodes[f"patch{i}"] = (kind, {"model": model, **inputs})
        model = [f"patch{i}", 0]
    settings = {"sampler": "euler", "schedule": "karras", "seed": 81, **changes}
    return Case({**nodes, "k": sampled(**settings, model=model)})


def _shrunk(block: int, factor: float, after: bool, down: str, up: str, end: float = 1.0) -> Case:
    methods = {"downscale_method": down, "upscale_method": up, "downscale_after_skip": after}
    inputs = {"block_number": block, "downscale_factor": factor, "start_percent": 0.0, "end_percent": end, **methods}
    return _patched(("PatchModelAddDownscale", inputs))


def _reused(kind: str, threshold: float, **changes: Any) -> Case:
    inputs = {"reuse_threshold": threshold, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}
    return _patched((kind, inputs), steps=12, **changes)


def _hooked(hooks: str, nodes: Mapping[str, Node] = MappingProxyType({}), *, negative: bool = False) -> Case:
    lora = ("CreateHookLora", {"lora_name": "small_lora.safetensors", "strength_model": 0.8, "strength_clip": 0.6})
    properties = {"strength": 1.0, "set_cond_area": "default", "hooks": [hooks, 0]}
    pair = {"positive_NEW": ["positive", 0], "negative_NEW": ["negative", 0], **properties}
    given: Nodes = {**SMALL, "lora": lora, "pair": ("PairConditioningSetProperties", pair), **nodes}
    branches = {"positive": ["pair", 0], **({"negative": ["pair", 1]} if negative else {})}
    run = sampled("euler", "karras", seed=82, steps=6, model=["small", 0], **branches)
    return Case({"k": run, **given})


def _keyed(keyframes: str, **nodes: Node) -> Case:
    keyed = ("SetHookKeyframes", {"hooks": ["lora", 0], "hook_kf": [keyframes, 0]})
    return _hooked("keyed", {"keyed": keyed, **nodes})


def _keyframe(factor: float, start: float, before: str = "") -> Node:
    previous = {"prev_hook_kf": [before, 0]} if before else {}
    return ("CreateHookKeyframe", {"strength_mult": factor, "start_percent": start, **previous})


def _interpolated(how: str) -> Node:
    settings = {"interpolation": how, "keyframes_count": 4, "print_keyframes": False}
    ends = {"strength_start": 0.2, "strength_end": 1.5, "start_percent": 0.1, "end_percent": 0.8}
    return ("CreateHookKeyframesInterpolated", {**ends, **settings})


def _two_models(cfg: float) -> Case:
    """A run whose negative another network answers for.

    It is of another file: of two views of one model ComfyUI's second has the first one's LoRAs.
    """
    guider = {**BOTH, "model": ["small", 0], "model_negative": ["other", 0], "cfg": cfg}
    links = {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")}
    sigmas = {"model": ["small", 0], "scheduler": "karras", "steps": 4, "denoise": 1.0}
    return Case(
        {
            **SMALL,
            "plain": ("SmallModel", {"name": "small_other.safetensors"}),
            "other": ("LoraLoaderModelOnly", {"model": ["plain", 0], **_LORA, "strength_model": 0.9}),
            "guider": ("DualModelGuider", guider),
            "noise": ("RandomNoise", {"noise_seed": 86}),
            "sampler": ("KSamplerSelect", {"sampler_name": "euler"}),
            "sigmas": ("BasicScheduler", sigmas),
            "k": ("SamplerCustomAdvanced", {**links, "latent_image": ["latent", 0]}),
        }
    )


def _clip(hooks: str, *, scheduled: bool, passed_on: bool, **nodes: Node) -> Case:
    lora = ("CreateHookLora", {"lora_name": "small_lora.safetensors", "strength_model": 0.8, "strength_clip": 0.6})
    keys: Nodes = {"k1": _keyframe(0.3, 0.0), "k2": _keyframe(1.4, 0.4, "k1"), "k3": _keyframe(0.8, 0.7, "k2")}
    flags = {"apply_to_conds": passed_on, "schedule_clip": scheduled}
    hooked: Nodes = {
        "keyed": ("SetHookKeyframes", {"hooks": ["lora", 0], "hook_kf": ["k3", 0]}),
        "clip": ("SetClipHooks", {"clip": ["checkpoint", 1], "hooks": [hooks, 0], **flags}),
        "text": ("CLIPTextEncode", {"text": "a red house", "clip": ["clip", 0]}),
    }
    run = sampled("euler", "karras", seed=83, steps=6, model=["small", 0], positive=["text", 0])
    return Case({**SMALL, "lora": lora, **keys, **hooked, **nodes, "k": run})


_LORA = {"lora_name": "small_lora.safetensors"}
_PROPERTIES = {"strength": 0.8, "set_cond_area": "default"}
_LAYERED: dict[str, Node] = {
    "hyper tile": ("HyperTile", TILES),
    "hyper tile scaled": ("HyperTile", {**TILES, "scale_depth": True, "swap_size": 4}),
    "token merging": ("TomePatchModel", {"ratio": 0.4}),
    "self-attention times": ("UNetSelfAttentionMultiply", {"q": 0.8, "k": 1.1, "v": 1.2, "out": 0.9}),
    "cross-attention times": ("UNetCrossAttentionMultiply", {"q": 1.3, "k": 0.9, "v": 0.7, "out": 1.1}),
}
_LOOKS: dict[str, Node] = {
    "perturbed": ("PerturbedAttentionGuidance", {"scale": 2.0}),
    "self-attention": ("SelfAttentionGuidance", {"scale": 0.7, "blur_sigma": 2.0}),
    "normalized": ("NAGuidance", {"nag_scale": 4.0, "nag_alpha": 0.6, "nag_tau": 1.5}),
}
_OVERRIDE = ("CFGOverride", {"cfg": 1.0, "start_percent": 0.2, "end_percent": 0.8})

PATCHES: dict[str, Case] = {
    **{f"layers|{name}": _patched(node) for name, node in _LAYERED.items()},
    "layers|several": _patched(
        _LAYERED["hyper tile"],
        *(_LAYERED[f"{kind}-attention times"] for kind in ("self", "cross")),
        ("FreeU", {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}),
    ),
    "layers|tiles of a batch's indices": Case(
        {
            **_patched(("HyperTile", TILES), latent_image=["part", 0]).nodes,
            "pair": ("EmptyLatentImage", {"width": 128, "height": 96, "batch_size": 2}),
            "part": ("LatentFromBatch", {"samples": ["pair", 0], "batch_index": 1, "length": 1}),
        }
    ),
    "shrink|after a downsampling": _shrunk(3, 2.0, True, "bicubic", "bicubic"),
    "shrink|before it skips": _shrunk(3, 2.0, False, "bilinear", "nearest-exact"),
    "shrink|inside a level": _shrunk(1, 1.6, True, "area", "bislerp"),
    "shrink|inside a level, before it skips": _shrunk(2, 1.5, False, "bislerp", "bilinear"),
    "shrink|the last": _shrunk(5, 2.0, True, "nearest-exact", "bicubic"),
    "shrink|larger, early": _shrunk(2, 0.7, True, "bicubic", "bicubic", end=0.4),
    **{f"look|{name}": _patched(node) for name, node in _LOOKS.items()},
    **{f"look|{name} at 1": _patched(node, cfg=1.0) for name, node in _LOOKS.items()},
    "scale|overridden": _patched(_OVERRIDE, steps=4),
    "scale|overridden twice": _patched(
        _OVERRIDE, ("CFGOverride", {"cfg": 9.0, "start_percent": 0.5, "end_percent": 1.0}), steps=4
    ),
    "scale|score": _patched(("TemporalScoreRescaling", {"tsr_k": 0.8, "tsr_sigma": 1.5}), wide=False),
    "scale|score smoother": _patched(("TemporalScoreRescaling", {"tsr_k": 1.3, "tsr_sigma": 0.5}), wide=False),
    **{
        f"reuse|{kind} {threshold}": _reused(kind, threshold)
        for kind, threshold in [("EasyCache", 0.05), ("EasyCache", 0.4), ("LazyCache", 0.1), ("LazyCache", 1.0)]
    },
    "reuse|LazyCache cfg++": _reused("LazyCache", 0.5, sampler="euler_cfg_pp", cfg=1.5),
    "reuse|EasyCache at 1": _reused("EasyCache", 0.3, cfg=1.0),
    "conditioning|times": Case(
        {
            **SMALL,
            "c": ("ConditioningMultiply", {"conditioning": ["positive", 0], "multiplier": 1.4}),
            "k": sampled("euler", "karras", seed=84, model=["small", 0], positive=["c", 0]),
        }
    ),
    "hooks|of the positive": _hooked("lora"),
    "hooks|of both": _hooked("lora", negative=True),
    "hooks|of a LoRA's model": _hooked(
        "lora",
        {
            "with": ("LoraLoaderModelOnly", {"model": ["small", 0], **_LORA, "strength_model": -0.5}),
            "k": sampled("euler", "karras", seed=82, positive=["pair", 0], model=["with", 0]),
        },
    ),
    "hooks|keyframes": _keyed("k2", k1=_keyframe(0.2, 0.0), k2=_keyframe(1.3, 0.5, "k1")),
    "hooks|late keyframes": _keyed("k2", k1=_keyframe(-1.0, 0.4), k2=_keyframe(1.3, 0.45, "k1")),
    **{f"hooks|{how}": _keyed("i", i=_interpolated(how)) for how in ("linear", "ease_in", "ease_out", "ease_in_out")},
    "hooks|combined": _hooked(
        "both",
        {
            "more": ("CreateHookLoraModelOnly", {**_LORA, "strength_model": -0.3}),
            "again": ("CreateHookLoraModelOnly", {**_LORA, "strength_model": 0.1, "prev_hooks": ["lora", 0]}),
            "both": ("CombineHooks4", {"hooks_A": ["more", 0], "hooks_C": ["again", 0], "hooks_D": ["lora", 0]}),
        },
    ),
    "hooks|default entries": _hooked(
        "lora",
        {
            "mask": ("SolidMask", {"value": 0.4, "width": 64, "height": 64}),
            "range": ("ConditioningTimestepsRange", {"start_percent": 0.0, "end_percent": 0.7}),
            "masked": (
                "ConditioningSetProperties",
                {"cond_NEW": ["positive", 0], **_PROPERTIES, "mask": ["mask", 0], "timesteps": ["range", 0]},
            ),
            "filled": (
                "ConditioningSetDefaultCombine",
                {"cond": ["masked", 0], "cond_DEFAULT": ["negative", 0], "hooks": ["lora", 0]},
            ),
            "k": sampled("euler", "karras", seed=82, steps=6, model=["small", 0], positive=["filled", 0]),
        },
    ),
    "boxes|one": _boxed(("a red ball", 48, 40, 64, 16)),
    "boxes|several": _boxed(("a red ball", 48, 40, 64, 16), ("(a hill:1.2)", 128, 32, 0, 64), ("fog", 16, 16, 8, 0)),
    "boxes|in an area, beside others": _boxed(
        ("a red ball", 48, 40, 0, 16),
        area=(
            "ConditioningSetArea",
            {"conditioning": ["box0", 0], "width": 64, "height": 96, "x": 64, "y": 0, "strength": 1.0},
        ),
        last=("ConditioningCombine", {"conditioning_1": ["area", 0], "conditioning_2": ["positive", 0]}),
    ),
    "guider|two models": _two_models(cfg=4.5),
    "guider|two models of one scale": _two_models(cfg=1.0),
    "clip|hooks": _clip("lora", scheduled=False, passed_on=False),
    "clip|hooks passed on": _clip("keyed", scheduled=False, passed_on=True),
    "clip|scheduled": _clip("keyed", scheduled=True, passed_on=False),
    "clip|scheduled, passed on": _clip("keyed", scheduled=True, passed_on=True),
}
COMPARED = [name for name in SAMPLERS if name not in LATER_SAMPLERS]
PATCHES |= {
    f"sampler|{sampler} {schedule}": _patched(sampler=sampler, schedule=schedule, seed=100 + i, wide=False)
    for i, (sampler, schedule) in enumerate(zip(COMPARED, cycle(SCHEDULES), strict=False))
}
"""Each sampler once, the schedules in turn; every pair is compared without a network, in test_samplers."""
