"""The workflows that are measured, in ComfyUI's API format, and where their seeds and colours come from."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any, TypeAlias

STEPS = 8
CFG = 7.0
SIDE = 64
TEXTS = ("a beautiful landscape, mountains at dawn", "a red bicycle leaning on a wall")
NEGATIVE = "blurry"

_fresh = count(1)
"""No seed or colour is used twice in a run: every contender keeps results and would answer at once."""


MIX: tuple[Mapping[str, Any], ...] = (
    {"sampler_name": "euler", "scheduler": "normal", "steps": 8, "cfg": 7.0},
    {"sampler_name": "euler_ancestral", "scheduler": "karras", "steps": 7, "cfg": 5.0},
    {"sampler_name": "dpmpp_2m", "scheduler": "karras", "steps": 8, "cfg": 7.5},
    {"sampler_name": "ddim", "scheduler": "ddim_uniform", "steps": 9, "cfg": 6.0},
)
"""What mixed jobs ask for in turn; eight steps on average."""


def fresh() -> int:
    """Return a seed that nobody has used yet."""
    return next(_fresh)


def txt2img(checkpoint: str, side: int = SIDE, *, mixed: bool = False) -> dict[str, Any]:
    """Return a workflow whose image nobody has made yet; the texts alternate. side: in pixels."""
    seed = next(_fresh)
    return {
        "1": _node("CheckpointLoaderSimple", ckpt_name=f"{checkpoint}.safetensors"),
        "2": _node("CLIPTextEncode", text=TEXTS[seed % len(TEXTS)], clip=["1", 1]),
        "3": _node("CLIPTextEncode", text=NEGATIVE, clip=["1", 1]),
        "4": _node("EmptyLatentImage", width=side, height=side, batch_size=1),
        "5": _node(
            "KSampler",
            model=["1", 0],
            positive=["2", 0],
            negative=["3", 0],
            latent_image=["4", 0],
            seed=seed,
            denoise=1.0,
            **MIX[seed % len(MIX) if mixed else 0],
        ),
        "6": _node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": _node("SaveImage", images=["6", 0], filename_prefix="bench"),
    }


Latent: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Nodes that make an empty latent, of which "latent" is the last."""


def image() -> Latent:
    """64 tokens."""
    return {"latent": _node("EmptySD3LatentImage", width=128, height=128, batch_size=1)}


def video() -> Latent:
    """17 frames, of 64 tokens each of its five latents."""
    return {"latent": _node("EmptyHunyuanLatentVideo", width=128, height=128, batch_size=1, length=17)}


def ltx_video_with_sound() -> Latent:
    """25 frames, of 64 tokens each of their four latents, and a second of sound, which has 25."""
    return {
        "video": _node("EmptyLTXVLatentVideo", width=256, height=256, batch_size=1, length=25),
        "sound": _node("Silence", channels=8, length=25, bins=16),
        "latent": _node("LTXVConcatAVLatent", video_latent=["video", 0], audio_latent=["sound", 0]),
    }


def minimax_video_with_sound() -> Latent:
    """22 frames, of 36 tokens each of their seven latents, and as much sound."""
    return {"latent": _node("EmptyMiniMaxH3LatentAV", width=192, height=192, length=22)}


def drawn(
    file: str,
    latent: Latent,
    *,
    tokens: int,
    width: int,
    pooled: int,
    steps: int = STEPS,
    sound: bool = False,
    mixed: bool = False,
) -> dict[str, Any]:
    """Return a workflow that samples latents with a backbone of its own file and texts of pack `words`.

    sound: the latent is of a video and its sound; the video's is saved. Mixed, jobs differ in sampler, schedule, steps
    and cfg too.
    """
    seed = next(_fresh)
    size = {"tokens": tokens, "width": width, "pooled": pooled}
    asked = dict(MIX[seed % len(MIX)]) if mixed else {**MIX[0], "cfg": 1.0}
    asked["steps"] = max(1, steps - STEPS + MIX[seed % len(MIX)]["steps"]) if mixed else steps
    return {
        **latent,
        "1": _node("UNETLoader", unet_name=file, weight_dtype="default"),
        "2": _node("Words", seed=seed, **size),
        "3": _node("Words", seed=0, **size),
        "5": _node(
            "KSampler",
            model=["1", 0],
            positive=["2", 0],
            negative=["3", 0],
            latent_image=["latent", 0],
            seed=seed,
            denoise=1.0,
            **asked,
        ),
        **({"6": _node("LTXVSeparateAVLatent", av_latent=["5", 0])} if sound else {}),
        "7": _node("SaveLatent", samples=["6" if sound else "5", 0], filename_prefix="bench"),
    }


def noop(*, saved: bool = False) -> dict[str, Any]:
    """Return a workflow that costs next to nothing: one colour that nobody has asked for yet, shown or saved."""
    named = {"filename_prefix": "bench"} if saved else {}
    return {
        "1": _node("EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=next(_fresh)),
        "2": _node("SaveImage" if saved else "PreviewImage", images=["1", 0], **named),
    }


def sleeping(seconds: float) -> dict[str, Any]:
    """Return a workflow of the stand-in for ComfyUI: an image that nobody has asked for yet, so long in the making."""
    return {
        "1": _node("StandInDraw", seed=next(_fresh)),
        "2": _node("StandInWork", image=["1", 0], seconds=seconds, steps=4),
        "3": _node("SaveImage", images=["2", 0], filename_prefix="bench"),
    }


def sleep(seconds: float, steps: int = 1) -> dict[str, Any]:
    """Return a workflow of the pack `sleeper`, which takes a slot for so long, in so many steps."""
    return {"1": _node("Sleep", seconds=seconds, steps=steps, seed=next(_fresh))}


def ticker(count: int, interval_s: float) -> dict[str, Any]:
    """Return a workflow of the pack `ticker`, which sends its client so many messages."""
    return {"1": _node("Ticker", count=count, interval_s=interval_s, seed=next(_fresh))}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
