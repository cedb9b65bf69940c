"""Wan's workflows from images to images or latents, on small random models, which are compared with ComfyUI's, by name.

They are those of ComfyUI's templates but for their text and image encoders, of which it knows one size.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve_app.models.families import WanVae
from tests.parity import wan_cases
from tests.parity.cases import Case
from tests.parity.dit_cases import noise
from tests.parity.workflow import Nodes
from tests.unit.models.sample import random_tensors

VAE = WanVae(width=8, latent_channels=16, image_channels=3)
RANK = 4

_TEXT = {"kind": "text", "shape": f"1,7,{wan_cases.TEXT}", "extra": "8"}
_NODES: Nodes = {
    "text": ("Fixed", {**_TEXT, "seed": 1}),
    "other": ("Fixed", {**_TEXT, "seed": 2}),
    "vae": ("VAELoader", {"vae_name": "wan21.safetensors"}),
    "start": ("Fixed", {"kind": "image", "seed": 3, "shape": "1,36,44,3"}),
    "end": ("Fixed", {"kind": "image", "seed": 4, "shape": "2,40,48,3"}),
    "control": ("Fixed", {"kind": "image", "seed": 5, "shape": "7,40,48,3"}),
    "masks": ("Fixed", {"kind": "soft mask", "seed": 6, "shape": "7,40,48"}),
    "poses": ("Fixed", {"kind": "image", "seed": 10, "shape": "19,40,48,3"}),
    "colours": ("Fixed", {"kind": "image", "seed": 11, "shape": "17,24,32,3"}),
    "seen": ("Fixed", {"kind": "seen", "seed": 7, "shape": f"1,5,{wan_cases.SEEN}"}),
    "seen last": ("Fixed", {"kind": "seen", "seed": 8, "shape": f"1,5,{wan_cases.SEEN}"}),
    "images": ("VAEDecode", {"samples": ["k", 0], "vae": ["vae", 0]}),
}
SIZE = {"width": 48, "height": 32, "length": 9, "batch_size": 1}
TOLD = {"positive": ["text", 0], "negative": ["other", 0], "vae": ["vae", 0], **SIZE}
_SAMPLED: dict[str, Any] = {"scheduler": "simple", "positive": ["wan", 0], "negative": ["wan", 1]}


def _models(*patches: tuple[str, dict[str, Any]], **files: str) -> Nodes:
    """Return nodes that load models, by the id of the last that changes each, as all patches do."""
    nodes: Nodes = {}
    for name, file in files.items():
        model = name if not patches else f"{name} file"
        nodes[model] = ("UNETLoader", {"unet_name": f"{file}.safetensors", "weight_dtype": "default"})
        for number, (kind, inputs) in enumerate(patches, 1):
            patched = name if number == len(patches) else f"{name} {number}"
            nodes[patched] = (kind, {"model": [model, 0], **inputs})
            model = patched
    return nodes


def _stages(cfg: float, steps: int, switch: int, sampler: str = "euler") -> Nodes:
    """Return two samplers, of which the second goes on with what noise the first leaves."""
    both = {**_SAMPLED, "steps": steps, "cfg": cfg, "sampler_name": sampler}
    first = {"add_noise": "enable", "noise_seed": 9, "start_at_step": 0, "end_at_step": switch}
    second = {"add_noise": "disable", "noise_seed": 0, "start_at_step": switch, "end_at_step": 10000}
    return {
        "high k": (
            "KSamplerAdvanced",
            {**both, **first, "model": ["high", 0], "latent_image": ["wan", 2], "return_with_leftover_noise": "enable"},
        ),
        "k": (
            "KSamplerAdvanced",
            {
                **both,
                **second,
                "model": ["low", 0],
                "latent_image": ["high k", 0],
                "return_with_leftover_noise": "disable",
            },
        ),
    }


def _one(
    kind: str,
    file: str,
    *patches: tuple[str, dict[str, Any]],
    target: str = "k",
    sampler: str = "uni_pc",
    **inputs: Any,
) -> Case:
    settings = {**_SAMPLED, "seed": 9, "steps": 4, "cfg": 3.0, "sampler_name": sampler, "denoise": 1.0}
    nodes = _models(*patches, model=file)
    k = ("KSampler", {**settings, "model": ["model", 0], "latent_image": ["wan", 2]})
    return Case({**_NODES, **nodes, "wan": (kind, {**TOLD, **inputs}), "k": k}, target)


def _with(case: Case, **nodes: tuple[str, dict[str, Any]]) -> Case:
    """Return a case with more nodes."""
    return Case({**case.nodes, **nodes}, case.target)


def _two(kind: str, stages: Nodes, *patches: tuple[str, dict[str, Any]], **inputs: Any) -> Case:
    models = _models(*patches, high="i2v_22", low="i2v_22_low")
    return Case({**_NODES, **models, **stages, "wan": (kind, {**TOLD, **inputs})}, "images")


def _block_by_block(frames: int, length: int, **nodes: tuple[str, dict[str, Any]]) -> Case:
    """Return a case of latent frames in blocks. nodes: instead of the usual ones, by id."""
    made: Nodes = {
        **_NODES,
        **_models(model="causal"),
        "wan": ("EmptyARVideoLatent", {**SIZE, "length": length}),
        "sampler": ("SamplerARVideo", {"num_frame_per_block": frames}),
        "sigmas": ("BasicScheduler", {"model": ["model", 0], "scheduler": "simple", "steps": 3, "denoise": 1.0}),
        "noise": ("RandomNoise", {"noise_seed": 9}),
        "guider": ("BasicGuider", {"model": ["model", 0], "conditioning": ["text", 0]}),
        **nodes,
    }
    links = {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")}
    latent = ["wan", 1 if made["wan"][0] == "ARVideoI2V" else 0]
    return Case({**made, "k": ("SamplerCustomAdvanced", {**links, "latent_image": latent})}, "k")


_SHIFTED = ("ModelSamplingSD3", {"shift": 5.0})
_LORA = ("LoraLoaderModelOnly", {"lora_name": "few_steps.safetensors", "strength_model": 0.8})
_FUN = ("LoraLoaderModelOnly", {"lora_name": "fun.safetensors", "strength_model": 0.7})
_START: dict[str, Any] = {"start_image": ["start", 0]}
_END: dict[str, Any] = {"end_image": ["end", 0]}
_PATH = {**{name: SIZE[name] for name in ("width", "height", "length")}, "speed": 1.0}
_PATH |= dict.fromkeys(("fx", "fy", "cx", "cy"), 0.5)
_ELSEWHERE = {"scale_x": 1.5, "shift_x": 2.0, "scale_y": 0.5, "shift_y": -1.0, "scale_t": 7.0, "shift_t": 0.5}
_POINTS = '[[{"x": 4, "y": 5}, {"x": 20, "y": 9}, {"x": 40, "y": 30}], [{"x": 30, "y": 20}]]'
_TRACKS = {"width": 48, "height": 32, "start_x": 0.1, "start_y": 0.3, "end_x": 0.9, "end_y": 0.7, "num_frames": 9}
_TRACKS |= {"num_tracks": 1, "track_spread": 0.3, "bezier": False, "mid_x": 0.5, "mid_y": 0.1}
_SKIPPED = {"double_layers": "1", "single_layers": "1", "scale": 3.0, "start_percent": 0.01, "end_percent": 0.8}
_TEMPORAL = dict.fromkeys(("self_structural", "self_temporal"), 1.0) | {"cross_structural": 1.2, "cross_temporal": 1.3}
_SCAIL: dict[str, Any] = {"pose_strength": 0.9, "pose_start": 0.0, "pose_end": 1.0, "width": 64, "height": 32}
_SCAIL |= {"pose_video": ["poses", 0], "pose_video_mask": ["colours", 0], "video_frame_offset": 0}
_SCAIL |= {"reference_image": ["end", 0], "reference_image_mask": ["colours", 0], "previous_frame_count": 1}

_ANIMATE: dict[str, Any] = {"pose_video": ["poses", 0], "reference_image": ["end", 0], "video_frame_offset": 0}
_ANIMATE |= {"pose_strength": 1.0, "pose_start_percent": 0.0, "pose_end_percent": 1.0, "reference_image_strength": 1.0}
_WINDOWS: dict[str, Any] = {"context_length": 3, "context_overlap": 1, "context_schedule": "standard_static"}
_WINDOWS |= {"context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "dim": 2, "freenoise": True}
_WINDOWS |= {"cond_retain_index_list": "0", "split_conds_to_windows": False, "latent_retain_index_list": ""}
_WINDOWS |= {"causal_window_fix": True}
_OF_WAN: dict[str, Any] = {"context_length": 13, "context_overlap": 5, "context_schedule": "standard_uniform"}
_OF_WAN |= {"context_stride": 2, "closed_loop": False, "fuse_method": "relative", "freenoise": False}
_OF_WAN |= {"retain_first_frame": True, "split_conds_to_windows": False}

_BEGUN = {**SIZE, "length": 17, "model": ["model", 0], "vae": ["vae", 0], "start_image": ["start", 0]}

WORKFLOWS: dict[str, Case] = {
    "two stages": _two("WanImageToVideo", _stages(3.5, 6, 3), _SHIFTED, **_START),
    "two stages of few steps": _two("WanImageToVideo", _stages(1.0, 4, 2), _LORA, _SHIFTED, **_START),
    "two stages, first and last": _two("WanFirstLastFrameToVideo", _stages(4.0, 4, 2, "uni_pc"), **_START, **_END),
    "an image": _one("WanImageToVideo", "i2v", _SHIFTED, target="images", **_START, clip_vision_output=["seen", 0]),
    "a LoRA of Fun's": _one("WanFunInpaintToVideo", "i2v_22", _FUN, _SHIFTED, **_START),
    "first and last": _one(
        "WanFirstLastFrameToVideo",
        "flf",
        **_START,
        **_END,
        clip_vision_start_image=["seen", 0],
        clip_vision_end_image=["seen last", 0],
    ),
    "inpainting": _one(
        "WanFunInpaintToVideo",
        "i2v",
        ("UNetTemporalAttentionMultiply", _TEMPORAL),
        _SHIFTED,
        ("SkipLayerGuidanceDiT", {**_SKIPPED, "rescaling_scale": 0.0}),
        ("CFGZeroStar", {}),
        **_END,
        clip_vision_output=["seen", 0],
    ),
    "control": _one("WanFunControlToVideo", "control", **_START, control_video=["control", 0]),
    "control of 2.2": _one(
        "Wan22FunControlToVideo", "control_22", ref_image=["start", 0], control_video=["control", 0]
    ),
    "VACE": _one(
        "WanVaceToVideo",
        "vace",
        strength=0.9,
        control_video=["control", 0],
        control_masks=["masks", 0],
        reference_image=["start", 0],
    ),
    "camera": _with(
        _one("WanCameraImageToVideo", "camera", **_START, camera_conditions=["camera", 0]),
        camera=("WanCameraEmbedding", {**_PATH, "camera_pose": "Pan Right", "speed": 1.5}),
    ),
    "camera of 2.2": _with(
        _one("WanCameraImageToVideo", "camera_22", camera_conditions=["camera", 0]),
        camera=("WanCameraEmbedding", {**_PATH, "camera_pose": "ClockWise (CW)", "fx": 0.7, "cy": 0.4}),
    ),
    "context": _one(
        "BerniniConditioning", "t2v", ref_max_size=40, source_video=["control", 0], reference_video=["end", 0]
    ),
    "positions": _one("WanImageToVideo", "i2v_22", ("ScaleROPE", _ELSEWHERE), **_START),
    "tracks": _one("WanTrackToVideo", "i2v_22", tracks=_POINTS, temperature=20.0, topk=2, **_START),
    "moved": _with(
        _one("WanMoveTrackToVideo", "i2v_22", strength=0.8, tracks=["tracks", 0], **_START),
        curve=("GenerateTracks", {**_TRACKS, "num_tracks": 2, "bezier": True, "interpolation": "ease_in"}),
        straight=("GenerateTracks", {**_TRACKS, "end_y": 0.1, "interpolation": "ease_in_out", "num_tracks": 1}),
        tracks=("WanMoveConcatTrack", {"tracks_1": ["curve", 0], "tracks_2": ["straight", 0]}),
    ),
    "SCAIL": _one("WanSCAILToVideo", "scail", **_SCAIL, replacement_mode=False, clip_vision_output=["seen", 0]),
    "SCAIL, replacing, further": _one(
        "WanSCAILToVideo",
        "scail",
        **{**_SCAIL, "pose_start": 0.2, "pose_end": 0.8, "video_frame_offset": 9, "length": 13, "width": 64},
        sampler="euler",
        replacement_mode=True,
        previous_frames=["end", 0],
    ),
    "animated": _one(
        "WanAnimate2ToVideo",
        "animate2",
        **{**_ANIMATE, "pose_strength": 0.8, "pose_end_percent": 0.6, "reference_image_strength": 1.2},
        sampler="euler",
        clip_vision_output=["seen", 0],
        clip_vision_output_pose=["seen last", 0],
        positive_pose=["other", 0],
    ),
    "animated in windows": _one(
        "WanAnimate2ToVideo",
        "animate2",
        ("ContextWindowsManual", _WINDOWS),
        **{**_ANIMATE, "length": 25, "video_frame_offset": 3},
        sampler="euler",
        continue_motion=["control", 0],
    ),
    "an image in windows": _one(
        "WanImageToVideo", "i2v_22", ("WanContextWindowsManual", _OF_WAN), sampler="euler", length=29, **_START
    ),
    "frame by frame, from an image": _block_by_block(
        1,
        17,
        wan=("ARVideoI2V", _BEGUN),
        guider=("BasicGuider", {"model": ["wan", 0], "conditioning": ["text", 0]}),
    ),
    "block by block": _block_by_block(2, 17),
    "a network of blocks, as a whole": _block_by_block(1, 9, sampler=("KSamplerSelect", {"sampler_name": "euler"})),
    "VACE, trimmed": Case(
        {
            **_one("WanVaceToVideo", "vace", strength=0.9, reference_image=["start", 0]).nodes,
            "trimmed": ("TrimVideoLatent", {"samples": ["k", 0], "trim_amount": ["wan", 3]}),
        },
        "trimmed",
    ),
}


def few_steps(width: int, inside: int, blocks: int = 1) -> dict[str, Tensor]:
    """Return a LoRA as those of few steps are: layers in two parts and their scale, and differences of the others."""
    made: dict[str, Tensor] = {}
    for block in (f"diffusion_model.blocks.{number}" for number in range(blocks)):
        shapes = {f"{part}.{name}": (width, width) for part in ("self_attn", "cross_attn") for name in "qkvo"}
        for name, (outputs, inputs) in (shapes | {"ffn.0": (inside, width), "ffn.2": (width, inside)}).items():
            made[f"{block}.{name}.lora_up.weight"] = noise(f"{block} {name} up", (outputs, RANK)) / 20
            made[f"{block}.{name}.lora_down.weight"] = noise(f"{block} {name} down", (RANK, inputs)) / 20
            made[f"{block}.{name}.alpha"] = torch.tensor(RANK / 2)
            made[f"{block}.{name}.diff_b"] = noise(f"{block} {name} bias", (outputs,)) / 20
        for name in ("norm3", *(f"{part}.norm_{of}" for part in ("self_attn", "cross_attn") for of in "qk")):
            made[f"{block}.{name}.diff"] = noise(f"{block} {name}", (width,)) / 20
        made[f"{block}.norm3.diff_b"] = noise(f"{block} norm3 bias", (width,)) / 20
    return made


def of_fun(lora: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the layers in two parts of a LoRA, named as Wan Fun's trainer does."""
    made: dict[str, Tensor] = {}
    for name, tensor in lora.items():
        layer, *kind = re.split(r"\.(lora_\w+\.weight|alpha)$", name.removeprefix("diffusion_model."))
        if kind:
            made[f"lora_unet__{layer.replace('.', '_')}.{kind[0]}"] = tensor
    return made


def write(models: Path) -> None:
    """Write every file that the workflows name."""
    for folder in ("diffusion_models", "vae", "loras"):
        (models / folder).mkdir()
    wan_cases.write(models / "diffusion_models")
    high = load_file(models / "diffusion_models" / "i2v_22.safetensors")
    low = {name: tensor.flip(0).contiguous() for name, tensor in high.items()}
    save_file(low, models / "diffusion_models" / "i2v_22_low.safetensors")
    whole, causal = (models / "diffusion_models" / f"{name}.safetensors" for name in ("t2v", "causal"))
    save_file(load_file(whole), causal, wan_cases.METADATA["causal"])
    vae = {name.removeprefix("first_stage_model."): t for name, t in random_tensors(VAE, torch.float32).items()}
    save_file(vae, models / "vae" / "wan21.safetensors")
    net = wan_cases.NETS["i2v_22"]
    lora = few_steps(net.width, net.inside, net.layers)
    save_file(lora, models / "loras" / "few_steps.safetensors")
    save_file(of_fun(lora), models / "loras" / "fun.safetensors")
