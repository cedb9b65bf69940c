"""What MiniMax H3 is compared with ComfyUI's modules on: small networks, and what they are asked.

Weights and inputs are drawn from names, so both sides make them for themselves. Torch alone is imported here: the
figures are made in ComfyUI's environment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.parity.dit_cases import noise
from tests.parity.figures import GOLDEN

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_layers": 2,
    "token_refiner_num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "ffn_hidden_size": 96,
    "text_dim": 48,
}
NETS: Mapping[str, dict[str, Any]] = {
    "whole": {**SIZES, "time_embed_hidden_size": 40, "time_embed_dim": 24},
    "pruned": {**SIZES, "time_embed_dim": 8, "adaln_curve_grid": 33},
}
"""ComfyUI's arguments: with a network that embeds times, and with the table that published files have."""
VIDEO, SOUND = (24, 7, 6, 8), (32, 2, 13)
"""The latents to sample, without the batch."""
SHIFTS = (12.0, 3.0)
SEED = 5


@dataclass(frozen=True)
class Case:
    """A forward. sigma: of the video; text: its tokens; tags: the kind of each, None for all text.

    keyframes, references: a name, and the sizes of its latents: frame or None, (T,h,w) or None, sounds or 0. mask: a
    name to draw one from. odd: the latents have odd sides.
    """

    name: str
    net: str
    sigma: float
    text: int = 5
    tags: Sequence[int] | None = None
    given: Sequence[tuple[int | None, tuple[int, int, int] | None, int]] = ()
    mask: bool = False
    video: tuple[int, ...] = VIDEO
    shifts: tuple[float, float] = SHIFTS


CASES = (
    Case("whole", "whole", 0.7),
    Case("pruned", "pruned", 0.7),
    Case("nearly done", "pruned", 0.03, shifts=(10.0, 3.0)),
    Case("odd sides", "pruned", 0.9, video=(24, 2, 5, 7)),
    Case("an image alone", "pruned", 0.9, video=(24, 1, 4, 4)),
    Case("frames", "pruned", 0.9, tags=(0, 0, 1, 0, 1), given=((0, (1, 6, 8), 0), (21, (1, 6, 8), 0))),
    Case("guides", "pruned", 0.5, given=((3, (2, 6, 8), 4), (9, None, 3))),
    Case(
        "references",
        "pruned",
        0.5,
        given=((None, (1, 4, 6), 0), (None, (7, 6, 4), 9), (None, (2, 4, 4), 0), (None, None, 6)),
    ),
    Case("mask", "pruned", 0.5, mask=True),
    Case("frames and a mask", "whole", 0.5, mask=True, given=((0, (1, 6, 8), 0),)),
)


@dataclass(frozen=True)
class Asked:
    """The tensors of a case. options: of the conditioning, by ComfyUI's names. mask: of video and sound."""

    video: Tensor
    sound: Tensor
    text: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    mask: tuple[Tensor, Tensor] | None = None


def asked(case: Case) -> Asked:
    """Return what a case asks."""
    frames = sum((1, 4, 4, 4, 4)[i % 5] for i in range(case.video[1]))
    sounds = SOUND[2] if case.video == VIDEO else round(frames * 5 / 3)
    video, sound = noise(f"{case.name} video", (1, *case.video)), noise(f"{case.name} sound", (1, *SOUND[:2], sounds))
    options: dict[str, Any] = {}
    if case.tags is not None:
        options["minimax_token_tags"] = torch.tensor(case.tags)
    keyframes, references = [], []
    for number, (frame, size, count) in enumerate(case.given):
        name, one = f"{case.name} {number}", {}
        if size is not None:
            one["latent"] = noise(f"{name} video", (1, case.video[0], *size))
        if count:
            one["audio_latent"] = noise(f"{name} sound", (1, *SOUND[:2], count))
        if frame is None:
            references.append(one | _block(size, count))
        else:
            keyframes.append(one | {"resolved_frame_index": frame})
    if keyframes:
        options["minimax_keyframes"] = keyframes
    if references:
        options["minimax_refs"] = references
    mask = None
    if case.mask:
        of_video = noise(f"{case.name} mask", (1, 1, *video.shape[2:])).sigmoid()
        of_video[:, :, :2], of_video[..., 4:] = 0, 1
        of_sound = torch.ones(1, 1, *sound.shape[2:])
        of_sound[..., :4] = 0
        mask = of_video.expand_as(video), of_sound.expand_as(sound)
    return Asked(video, sound, noise(f"{case.name} text", (1, case.text, SIZES["text_dim"])), options, mask)


def _block(size: tuple[int, int, int] | None, count: int) -> dict[str, Any]:
    """Return what else ComfyUI's nodes say of a reference."""
    if size is None:
        return {"kind": "audio", "ref_audio_t": count}
    if size[0] == 1:
        return {"kind": "image", "latent_h": size[1], "latent_w": size[2]}
    kind = "video_audio" if count else "video"
    return {"kind": kind, "latent_t": size[0], "latent_h": size[1], "latent_w": size[2], "ref_audio_t": count}


def drawn(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return weights of these names and shapes; frequencies as they are published, filters that keep a mean."""
    made = {}
    for name, shape in shapes.items():
        if name == "rope.inv_freq":
            made[name] = 1.0 / (10000.0 ** (torch.arange(0, 2 * shape[0], 2, dtype=torch.float32) / (2 * shape[0])))
        elif name.endswith(".filter"):
            taps = noise(name, shape).abs()
            made[name] = taps / taps.sum()
        elif name.endswith("latents_std"):
            made[name] = noise(name, shape).abs() + 0.5
        else:
            flat = len(shape) == 1
            scale = 0.1 if flat else 1 / math.sqrt(math.prod(shape[1:]))
            weight = ".norm" in name or "_norm" in name or name.endswith(("scale1", "scale2", "alpha"))
            made[name] = noise(name, shape) * scale + (1 if flat and weight and name.endswith("weight") else 0)
    return made


def file(name: str) -> dict[str, Tensor]:
    """Return the tensors of a network's file: "whole", "pruned", "text", "vae" or "audio_vae"."""
    keys: dict[str, list[int]] = json.loads((GOLDEN / "minimax_h3_keys.json").read_text())[name]
    return drawn(keys)


VAE: dict[str, Any] = {"ch": 32, "ch_mult": (1, 1, 1, 1, 1, 2), "num_res_blocks": 1}
VAE_DECODER: dict[str, Any] = {"num_layers": 2, "heads": 1, "dim_head": 64}
FRAMES = (1, 5, 20, 22, 39)
"""Lengths of videos in images, one of which is off the grid."""
LATENT_FRAMES = (1, 2, 3, 7, 12, 14)
WIDE = (1, 3, 5, 32, 288)
"""A video of more than one tile."""
AUDIO: dict[str, Any] = {"encoder_dim": 4, "latent_dim": 64, "decoder_dim": 128}
SAMPLES = 2500

TEXT: dict[str, Any] = {
    "hidden_size": SIZES["text_dim"],
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 4,
}
TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_position_embeddings": 49}
PROMPT = "a red fox says <Audio 1> (twice:1.3)"
TEXTS: Mapping[str, tuple[str, Sequence[tuple[str, tuple[int, ...]]]]] = {
    "plain": (PROMPT, ()),
    "empty": ("", ()),
    "pictures": (PROMPT, (("image", (1, 64, 96, 3)), ("image", (1, 40, 40, 3)))),
    "references": (
        PROMPT,
        (("image", (1, 64, 64, 3)), ("audio", ()), ("video", (3, 64, 96, 3)), ("video", (2, 32, 64, 3)), ("audio", ())),
    ),
}
"""Texts, and what they refer to: its kind, and the shape of its images."""


def referred(name: str) -> list[tuple[str, Tensor | None]]:
    """Return what a text refers to, with images in 0…1."""
    items = TEXTS[name][1]
    return [
        (kind, noise(f"{name} {number}", shape).sigmoid() if shape else None)
        for number, (kind, shape) in enumerate(items)
    ]


@dataclass(frozen=True)
class Run:
    """A sampler's run on the latents of a case. shifts: None: the model's own. image: of one image, empty."""

    case: Case
    sampler: str
    schedule: str = "simple"
    steps: int = 3
    cfg: float = 1.0
    shifts: tuple[float, float] | None = None
    image: bool = False

    @property
    def name(self) -> str:
        return f"run {self.case.name} {self.sampler}"


_BY_NAME = {case.name: case for case in CASES}
RUNS = (
    Run(_BY_NAME["pruned"], "res_multistep"),
    Run(_BY_NAME["whole"], "euler_ancestral", shifts=(10.0, 2.5)),
    Run(_BY_NAME["frames"], "euler", cfg=2.0),
    Run(_BY_NAME["guides"], "dpmpp_2m", "beta"),
    Run(_BY_NAME["references"], "res_multistep"),
    Run(_BY_NAME["mask"], "euler", steps=4),
    Run(_BY_NAME["frames and a mask"], "res_multistep", shifts=(6.0, 3.0)),
    Run(_BY_NAME["an image alone"], "euler", image=True),
)


def samples(run: Run) -> list[Tensor]:
    """Return the latents of a run, one part or two; empty ones if they are of an image alone, or without a mask."""
    if run.image:
        return [torch.zeros(1, 4, 8, 8)]
    a = asked(run.case)
    return [a.video, a.sound] if run.case.mask else [torch.zeros_like(a.video), torch.zeros_like(a.sound)]


def negative(run: Run) -> Tensor:
    """Return the other text of a run."""
    return noise(f"{run.name} negative", (1, 4, SIZES["text_dim"]))
