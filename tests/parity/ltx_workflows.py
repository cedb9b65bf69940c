"""Workflows of LTX-2.3 and 2.5 on small random files, which are compared with ComfyUI's, by name.

Texts are given: ComfyUI knows Gemma 3 of one size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tests.parity import ltx_cases
from tests.parity.cases import Case
from tests.parity.dit_cases import weights
from tests.parity.figures import GOLDEN
from tests.parity.workflow import Nodes

NET = "ltx23"
FILE, UPSCALER, LORA = "ltx23.safetensors", "ltx_upscaler.safetensors", "ltx_ic_lora.safetensors"
NETWORK_25, VAE_25, AUDIO_VAE_25 = "ltx25.safetensors", "ltx25_vae.safetensors", "ltx25_audio_vae.safetensors"
FRAMES, RATE = 17, 24.0

_TEXT = {"kind": "unprocessed text", "shape": f"1,7,{ltx_cases.TEXTS[NET]}", "extra": "8"}
_NODES: Nodes = {
    "file": ("CheckpointLoaderSimple", {"ckpt_name": FILE}),
    "audio vae": ("LTXVAudioVAELoader", {"ckpt_name": FILE}),
    "text": ("Fixed", {**_TEXT, "seed": 1}),
    "other": ("Fixed", {**_TEXT, "seed": 2}),
    "image": ("Fixed", {"kind": "image", "seed": 3, "shape": "1,70,90,3"}),
    "video": ("EmptyLTXVLatentVideo", {"width": 96, "height": 64, "length": FRAMES, "batch_size": 1}),
    "sound": (
        "LTXVEmptyLatentAudio",
        {"frames_number": FRAMES, "frame_rate": RATE, "batch_size": 1, "audio_vae": ["audio vae", 0]},
    ),
    "texts": ("LTXVConditioning", {"positive": ["text", 0], "negative": ["other", 0], "frame_rate": RATE}),
    "begun": (
        "LTXVImgToVideoInplace",
        {"vae": ["file", 2], "image": ["image", 0], "latent": ["video", 0], "strength": 0.7, "bypass": False},
    ),
    "whole": ("LTXVConcatAVLatent", {"video_latent": ["video", 0], "audio_latent": ["sound", 0]}),
    "sampler": ("KSamplerSelect", {"sampler_name": "euler"}),
    "noise": ("RandomNoise", {"noise_seed": 5}),
    "guider": (
        "CFGGuider",
        {"model": ["file", 0], "positive": ["texts", 0], "negative": ["texts", 1], "cfg": 3.0},
    ),
    "sigmas": ("ManualSigmas", {"sigmas": "1.0, 0.9875, 0.909375, 0.421875, 0.0"}),
    "k": (
        "SamplerCustomAdvanced",
        {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")} | {"latent_image": ["whole", 0]},
    ),
}


def _case(target: str, **nodes: tuple[str, dict[str, Any]]) -> Case:
    return Case({**_NODES, **nodes}, target)


def _of_25(target: str, **nodes: tuple[str, dict[str, Any]]) -> Case:
    """Return a workflow of LTX-2.5, whose parts are in files of their own, guided and sampled as its templates do."""
    guided = {"model": ["network", 0], "positive": ["texts", 0], "negative": ["texts", 1]}
    made: Nodes = {
        "network": ("UNETLoader", {"unet_name": NETWORK_25, "weight_dtype": "default"}),
        "vae": ("VAELoader", {"vae_name": VAE_25}),
        "audio vae": ("VAELoader", {"vae_name": AUDIO_VAE_25}),
        "guider": ("LTXVDualCFGGuider", {**guided, "video_cfg": 1.0, "audio_cfg": 1.0}),
        "sampler": ("KSamplerSelect", {"sampler_name": "euler_ancestral"}),
        **nodes,
    }
    whole = {name: node for name, node in (_NODES | made).items() if name != "file"}
    # The others are of a checkpoint with all parts.
    return Case({name: node for name, node in whole.items() if name in nodes or not _reads(node, "file")}, target)


def _reads(node: tuple[str, dict[str, Any]], name: str) -> bool:
    return any(isinstance(value, list) and value[0] == name for value in node[1].values())


def _sampled(**changes: Any) -> tuple[str, dict[str, Any]]:
    settings = {"sampler_name": "euler_ancestral", "scheduler": "linear_quadratic", "seed": 6, "steps": 4}
    links = {"model": ["file", 0], "positive": ["texts", 0], "negative": ["texts", 1], "latent_image": ["whole", 0]}
    return ("KSampler", {**settings, "cfg": 1.0, "denoise": 1.0, **links, **changes})


def _guide(frame: int, strength: float, after: str = "", **changes: Any) -> tuple[str, dict[str, Any]]:
    """Return a node that adds a guide. after: the guide before it; "" for none."""
    texts, latent = (after or "texts"), [after, 2] if after else ["video", 0]
    return (
        "LTXVAddGuide",
        {
            "positive": [texts, 0],
            "negative": [texts, 1],
            "vae": ["file", 2],
            "latent": latent,
            "image": ["image", 0],
            "frame_idx": frame,
            "strength": strength,
            **changes,
        },
    )


def _guided(target: str, **nodes: tuple[str, dict[str, Any]]) -> Case:
    """Return a sampling with guides, of which `last` is the last."""
    texts = {"positive": ["last", 0], "negative": ["last", 1]}
    made: Nodes = {
        "whole": ("LTXVConcatAVLatent", {"video_latent": ["last", 2], "audio_latent": ["sound", 0]}),
        "guider": ("CFGGuider", {"model": ["file", 0], **texts, "cfg": 2.0}),
        "apart": ("LTXVSeparateAVLatent", {"av_latent": ["k", 0]}),
        "cropped": ("LTXVCropGuides", {**texts, "latent": ["apart", 0]}),
        "left": ("LatentMultiply", {"samples": ["cropped", 2], "multiplier": 1.0}),
    }
    return _case(target, **{**made, **nodes})


def _guided_by(node: str, **settings: Any) -> Case:
    """Return a sampling whose model a node changes."""
    return _case(
        "k",
        changed=(node, {"model": ["file", 0], **settings}),
        guider=(
            "CFGGuider",
            {"model": ["changed", 0], "positive": ["texts", 0], "negative": ["texts", 1], "cfg": 2.0},
        ),
    )


def _enlarged(target: str) -> Case:
    """Return a video that is sampled, enlarged and sampled again."""
    return _case(
        target,
        apart=("LTXVSeparateAVLatent", {"av_latent": ["k", 0]}),
        upscaler=("LatentUpscaleModelLoader", {"model_name": UPSCALER}),
        larger=(
            "LTXVLatentUpsampler",
            {"samples": ["apart", 0], "upscale_model": ["upscaler", 0], "vae": ["file", 2]},
        ),
        joined=("LTXVConcatAVLatent", {"video_latent": ["larger", 0], "audio_latent": ["apart", 1]}),
        few=("ManualSigmas", {"sigmas": "0.85, 0.4219, 0.0"}),
        again=(
            "SamplerCustomAdvanced",
            {name: [name, 0] for name in ("noise", "guider", "sampler")}
            | {"sigmas": ["few", 0], "latent_image": ["joined", 0]},
        ),
    )


def _heard(node: str, **vae: Any) -> Case:
    """Return the decoding of a drawn latent."""
    return _case(
        "heard",
        kept=("Fixed", {"kind": "latent", "seed": 8, "shape": "1,8,18,16"}),
        whole=("LTXVConcatAVLatent", {"video_latent": ["video", 0], "audio_latent": ["kept", 0]}),
        heard=(node, {"samples": ["whole", 0], **vae}),
    )


WORKFLOWS: dict[str, Case] = {
    "text to video with sound": _case("k"),
    "text to video": _case("s", s=_sampled(latent_image=["video", 0])),
    "few steps": _case("s", s=_sampled()),
    "an image": _case("k", whole=("LTXVConcatAVLatent", {"video_latent": ["begun", 0], "audio_latent": ["sound", 0]})),
    "a given sound": _case(
        "s",
        s=_sampled(cfg=2.0),
        silence=("SolidMask", {"value": 0.0, "width": 16, "height": 16}),
        kept=("Fixed", {"kind": "latent", "seed": 8, "shape": "1,8,18,16"}),
        masked=("SetLatentNoiseMask", {"samples": ["kept", 0], "mask": ["silence", 0]}),
        whole=("LTXVConcatAVLatent", {"video_latent": ["video", 0], "audio_latent": ["masked", 0]}),
    ),
    "a second stage": _case(
        "again",
        apart=("LTXVSeparateAVLatent", {"av_latent": ["k", 0]}),
        larger=("LatentUpscaleBy", {"samples": ["apart", 0], "upscale_method": "bilinear", "scale_by": 2.0}),
        again_begun=(
            "LTXVImgToVideoInplace",
            {"vae": ["file", 2], "image": ["image", 0], "latent": ["larger", 0], "strength": 1.0, "bypass": False},
        ),
        joined=("LTXVConcatAVLatent", {"video_latent": ["again_begun", 0], "audio_latent": ["apart", 1]}),
        last=("ManualSigmas", {"sigmas": "0.85, 0.4219, 0.0"}),
        again=(
            "SamplerCustomAdvanced",
            {name: [name, 0] for name in ("noise", "guider", "sampler")}
            | {"sigmas": ["last", 0], "latent_image": ["joined", 0]},
        ),
    ),
    "an enlarged video": _enlarged("larger"),
    "a second stage of an enlarged video": _enlarged("again"),
    "a guide at the end": _guided("k", last=_guide(-1, 0.7)),
    "a first and a last frame": _guided("left", first=_guide(0, 1.0), last=_guide(-1, 0.6, after="first")),
    "a clip in the middle": _guided(
        "k",
        clip=("Fixed", {"kind": "image", "seed": 4, "shape": "12,70,90,3"}),
        heeded=("Fixed", {"kind": "soft mask", "seed": 5, "shape": "12,70,90"}),
        last=_guide(10, 1.5, image=["clip", 0], attention_mask=["heeded", 0]),
    ),
    "an IC-LoRA's reference": _guided(
        "k",
        with_lora=("LoraLoaderModelOnly", {"model": ["file", 0], "lora_name": LORA, "strength_model": 0.8}),
        said=("GetICLoRAParameters", {"iclora_model": ["with_lora", 0]}),
        video=("EmptyLTXVLatentVideo", {"width": 128, "height": 64, "length": FRAMES, "batch_size": 1}),
        clip=("Fixed", {"kind": "image", "seed": 4, "shape": "17,32,64,3"}),
        last=_guide(0, 0.9, image=["clip", 0], iclora_parameters=["said", 0]),
        guider=(
            "CFGGuider",
            {"model": ["with_lora", 0], "positive": ["last", 0], "negative": ["last", 1], "cfg": 2.0},
        ),
    ),
    "guidance of each part": _case(
        "k",
        guider=(
            "LTXVDualCFGGuider",
            {
                "model": ["file", 0],
                "positive": ["texts", 0],
                "negative": ["texts", 1],
                "video_cfg": 1.0,
                "audio_cfg": 4.0,
            },
        ),
    ),
    "guidance by stilled blocks": _guided_by(
        "LTXVSpatioTemporalGuidance", scale=1.5, blocks="1, 7", start_percent=0.0, end_percent=0.5
    ),
    "guidance by streams apart": _guided_by(
        "LTXVModalityGuidance", modality_scale=3.0, start_percent=0.0, end_percent=1.0
    ),
    "guidance by a skipped block": _guided_by(
        "SkipLayerGuidanceDiT",
        double_layers="1",
        single_layers="",
        scale=2.0,
        start_percent=0.0,
        end_percent=1.0,
        rescaling_scale=0.0,
    ),
    "LTX's schedule": _case(
        "k",
        sigmas=(
            "LTXVScheduler",
            {
                "steps": 4,
                "max_shift": 2.05,
                "base_shift": 0.95,
                "stretch": True,
                "terminal": 0.1,
                "latent": ["whole", 0],
            },
        ),
    ),
    "LTX's levels": _case(
        "s",
        shifted=("ModelSamplingLTXV", {"model": ["file", 0], "max_shift": 2.05, "base_shift": 0.95}),
        s=_sampled(model=["shifted", 0], scheduler="simple"),
    ),
    "images": _case("images", images=("VAEDecode", {"samples": ["k", 0], "vae": ["file", 2]})),
    "a sound": _heard("LTXVAudioVAEDecode", audio_vae=["audio vae", 0]),
    "a quieter sound": _heard("VAEDecodeAudio", vae=["audio vae", 0]),
    "text to video of LTX-2.5": _of_25("k"),
    "an image of LTX-2.5, enlarged and sampled again": _of_25(
        "again",
        begun=(
            "LTXVImgToVideoInplace",
            {"vae": ["vae", 0], "image": ["image", 0], "latent": ["video", 0], "strength": 0.7, "bypass": False},
        ),
        whole=("LTXVConcatAVLatent", {"video_latent": ["begun", 0], "audio_latent": ["sound", 0]}),
        apart=("LTXVSeparateAVLatent", {"av_latent": ["k", 0]}),
        upscaler=("LatentUpscaleModelLoader", {"model_name": UPSCALER}),
        larger=("LTXVLatentUpsampler", {"samples": ["apart", 0], "upscale_model": ["upscaler", 0], "vae": ["vae", 0]}),
        joined=("LTXVConcatAVLatent", {"video_latent": ["larger", 0], "audio_latent": ["apart", 1]}),
        few=("ManualSigmas", {"sigmas": "0.85, 0.4219, 0.0"}),
        again=(
            "SamplerCustomAdvanced",
            {name: [name, 0] for name in ("noise", "guider", "sampler")}
            | {"sigmas": ["few", 0], "latent_image": ["joined", 0]},
        ),
    ),
    "a first and a last frame of LTX-2.5": _of_25(
        "left",
        first=_guide(0, 0.7, vae=["vae", 0]),
        last=_guide(-1, 0.7, after="first", vae=["vae", 0]),
        whole=("LTXVConcatAVLatent", {"video_latent": ["last", 2], "audio_latent": ["sound", 0]}),
        guider=(
            "LTXVDualCFGGuider",
            {
                "model": ["network", 0],
                "positive": ["last", 0],
                "negative": ["last", 1],
                "video_cfg": 2.0,
                "audio_cfg": 1.0,
            },
        ),
        sampler=("SamplerEulerAncestral", {"eta": 0.0, "s_noise": 1.0}),
        apart=("LTXVSeparateAVLatent", {"av_latent": ["k", 0]}),
        cropped=("LTXVCropGuides", {"positive": ["last", 0], "negative": ["last", 1], "latent": ["apart", 0]}),
        left=("LatentMultiply", {"samples": ["cropped", 2], "multiplier": 1.0}),
    ),
    "images of LTX-2.5": _of_25("images", images=("VAEDecode", {"samples": ["k", 0], "vae": ["vae", 0]})),
    "images of LTX-2.5 in tiles": _of_25(
        "images",
        images=(
            "VAEDecodeTiled",
            {
                "samples": ["k", 0],
                "vae": ["vae", 0],
                "tile_size": 64,
                "overlap": 32,
                "temporal_size": 16,
                "temporal_overlap": 8,
            },
        ),
    ),
    "compressed": _case("made", made=("LTXVPreprocess", {"image": ["image", 0], "img_compression": 18})),
}


def tensors(net: str = NET) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, as it is published: the network, both autoencoders and the vocoder."""
    parts = ((net, "model.diffusion_model."), ("vae", "vae."), (f"{net} sounds", ""))
    return {prefix + key: tensor for name, prefix in parts for key, tensor in part(name).items()}


def part(name: str) -> dict[str, Tensor]:
    """Return the tensors of a network, as its own file has them."""
    shapes = json.loads((GOLDEN / "ltx_keys.json").read_text())[name]
    made = ltx_cases.autoencoder_weights(shapes)
    return {key.replace("autoencoder.", "audio_vae."): tensor for key, tensor in made.items()}


def upscaler() -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a latent upscaler's file."""
    shapes = json.loads((GOLDEN / "ltx_keys.json").read_text())["upscaler of sides"]
    return ltx_cases.autoencoder_weights(shapes), {"config": json.dumps(ltx_cases.UPSCALERS["sides"])}


def write(models: Path) -> None:
    """Write the checkpoint, a latent upscaler, an IC-LoRA and LTX-2.5's files."""
    parts = {"diffusion_models": [("ltx25", NETWORK_25)], "vae": [("vae 2.5", VAE_25), ("ltx23 sounds", AUDIO_VAE_25)]}
    for kind, files in parts.items():
        (models / kind).mkdir(parents=True, exist_ok=True)
        for of, name in files:
            save_file(part(of), models / kind / name, ltx_cases.metadata("ltx25"))
    for name in ("latent_upscale_models", "loras"):
        (models / name).mkdir(parents=True, exist_ok=True)
    made, metadata = upscaler()
    save_file(made, models / "latent_upscale_models" / UPSCALER, metadata)
    layer = "diffusion_model.transformer_blocks.0.attn1.to_q"
    factors = weights({f"{layer}.lora_A.weight": (2, 48), f"{layer}.lora_B.weight": (48, 2)})
    save_file(factors, models / "loras" / LORA, {"reference_downscale_factor": "2"})
    folder = models / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(), folder / FILE, ltx_cases.metadata(NET))
