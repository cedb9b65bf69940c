"""What model controls are compared with ComfyUI's on: small networks, and what they are asked. As `dit_cases`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.parity.dit_cases import NETS as SMALLEST
from tests.parity.dit_cases import noise, weights

NETS: Mapping[str, dict[str, Any]] = {
    "qwen": {**SMALLEST["qwen"], "num_layers": 3},
    "zimage": {**SMALLEST["zimage"], "n_layers": 6},
    "flux": SMALLEST["flux"],
    "anima": SMALLEST["anima"],
}
_ZIMAGE = {"dim": 288, "n_heads": 9, "n_kv_heads": 9}
PATCHES: Mapping[str, dict[str, Any]] = {
    "qwen_hint": {"num_layers": 3, "dim": 64},
    "qwen_masked": {"num_layers": 3, "dim": 64, "additional_in_dim": 4},
    "zimage_1": _ZIMAGE,
    "zimage_lite": {**_ZIMAGE, "n_control_layers": 3, "additional_in_dim": 17, "refiner_control": True},
    "zimage_2": {**_ZIMAGE, "n_control_layers": 15, "additional_in_dim": 17, "refiner_control": True},
    "zimage_20": {**_ZIMAGE, "n_control_layers": 15, "additional_in_dim": 17, "refiner_control": True, "broken": True},
    # Its network follows from the tensors: channels and residual blocks of the reader, the layers of each block.
    "anima_hint": {"channels": 3, "resblocks": 1, "layers": ("self_attn_q_proj", "self_attn_k_proj", "mlp_layer1")},
    "anima_masked": {"channels": 4, "resblocks": 0, "layers": ("self_attn_v_proj", "cross_attn_q_proj"), "aspp": True},
    "flux_uso": {"siglip_token_nums": 9, "style_token_nums": 4, "siglip_token_dims": 24, "hidden_size": 64},
}
"""ComfyUI's arguments of the patches; its loader knows one width alone."""
SAID = {
    "anima_hint": {"lllite.version": "2"},
    "anima_masked": {"lllite.version": "2", "lllite.aspp_dilations": "1,2", "lllite.inpaint_masked_input": "true"},
}
"""What the metadata of files says."""
NO_ANSWERS = {"zimage_20": "control_noise_refiner.0.after_proj.weight"}
"""A tensor that is all zero in a file."""
SIGMAS = (0.3, 0.9)


@dataclass(frozen=True)
class Case:
    """A backbone under a patch. size: of the latents. image, inpaint, mask: sizes in pixels, None for none.

    Flux.1 is shown what is seen in an image of no size.

    text: how many tokens. beside: a second patch, which is shown the same after it. span: the part of the sampling in
    which they act, for those that can be told one.
    """

    patch: str
    size: tuple[int, int] = (8, 8)
    image: tuple[int, int] | None = (64, 64)
    inpaint: tuple[int, int] | None = None
    mask: tuple[int, int] | None = None
    text: int = 5
    strength: float = 0.8
    beside: str = ""
    span: tuple[float, float] = (0.0, 1.0)

    @property
    def net(self) -> str:
        return self.patch.partition("_")[0]

    @property
    def name(self) -> str:
        return " ".join(str(value) for name, value in vars(self).items() if name != "span" or value != (0.0, 1.0))


CASES: Sequence[Case] = (
    Case("qwen_hint"),
    Case("qwen_hint", (9, 7), (50, 70), text=9),
    Case("qwen_hint", strength=-1.5, beside="qwen_masked"),
    Case("qwen_masked"),
    Case("qwen_masked", (9, 7), (72, 56), mask=(36, 60)),
    Case("zimage_1"),
    Case("zimage_1", (9, 7), (50, 70), text=40),
    Case("zimage_lite", mask=(64, 64)),
    Case("zimage_2"),
    Case("zimage_2", (9, 7), (50, 70), (72, 56), (36, 60)),
    Case("zimage_2", (6, 10), None, (48, 80), (48, 80), text=33),
    Case("zimage_2", inpaint=(64, 64), beside="zimage_1"),
    Case("zimage_20", (7, 8), (56, 64), mask=(64, 48)),
    Case("anima_hint"),
    Case("anima_hint", (9, 7), (50, 70), text=9, strength=-1.5),
    Case("anima_hint", span=(0.4, 1.0)),
    Case("anima_masked", mask=(64, 48)),
    Case("anima_masked", (9, 7), (72, 56), beside="anima_hint"),
    Case("flux_uso"),
    Case("flux_uso", text=9),
    Case("flux_uso", text=7, beside="flux_uso"),
    Case("flux_uso", (9, 7), text=9, beside="flux_uso"),
)


def lllite(channels: int, resblocks: int, layers: Sequence[str], aspp: bool = False) -> dict[str, list[int]]:
    """Return the shapes of a file of an LLLite for two blocks 64 wide, with 12 features, 16 inside and 6 in a layer."""
    reader, wide, features, hidden, width = "lllite_conditioning1", 16, 12, 6, 64
    kernels = {"conv1": [8, channels, 4, 4], "conv2": [8, 8, 3, 3], "conv3": [wide, 8, 4, 4]}
    kernels["proj"] = [features, wide, 1, 1]
    norms = {"norm1": 8, "norm2": 8, "norm3": wide, "out_norm": features}
    for number in range(resblocks):
        for i in (1, 2):
            kernels[f"resblocks.{number}.conv{i}"] = [wide, wide, 3, 3]
            norms[f"resblocks.{number}.norm{i}"] = wide
    for name, inputs, side in (
        (("branches.0", 1, 1), ("branches.1", 1, 3), ("global_conv", 1, 1), ("proj", 3, 1)) if aspp else ()
    ):
        kernels[f"aspp.{name}.0"] = [wide, wide * inputs, side, side]
        norms[f"aspp.{name}.1"] = wide
    shapes = {f"{reader}.{name}.weight": shape for name, shape in kernels.items()}
    shapes |= {f"{reader}.{name}.bias": shape[:1] for name, shape in kernels.items()}
    shapes |= {f"{reader}.{name}.{leaf}": [count] for name, count in norms.items() for leaf in ("weight", "bias")}
    linear = {"down": [hidden, width], "mid": [hidden, hidden + features], "up": [width, hidden]}
    linear["cond_to_film"] = [2 * hidden, features]
    for block in range(2):
        for layer in layers:
            whole = f"lllite_dit_blocks_{block}_{layer}"
            shapes[f"{whole}.depth_embed"] = [features]
            for name, shape in linear.items():
                shapes |= {f"{whole}.{name}.weight": shape, f"{whole}.{name}.bias": shape[:1]}
    return shapes


def file(patch: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return the tensors of a patch's file."""
    tensors = weights(shapes)
    if patch in NO_ANSWERS:
        tensors[NO_ANSWERS[patch]].zero_()
    return tensors


@dataclass(frozen=True)
class Asked:
    """The tensors of a case, of two rows. image, inpaint: (1,H,W,3); mask: (1,H,W).

    seen: by an image encoder, (1,N,D) each, from the first layers to the last.
    """

    x: Tensor
    text: Tensor
    image: Tensor | None
    inpaint: Tensor | None
    mask: Tensor | None
    seen: tuple[Tensor, ...]


def asked(case: Case) -> Asked:
    """Return what the networks are asked."""

    def image(what: str, size: tuple[int, int] | None) -> Tensor | None:
        return None if size is None else noise(f"{case.name} {what}", (1, *size, 3)).sigmoid()

    time = (1,) if case.net in ("qwen", "anima") else ()
    mask = None if case.mask is None else noise(f"{case.name} mask", (1, *case.mask)).sigmoid()
    return Asked(
        noise(f"{case.name} x", (2, 16, *time, *case.size)),
        noise(f"{case.name} text", (2, case.text, 48)),
        image("image", case.image),
        image("inpaint", case.inpaint),
        None if mask is None else torch.where(mask > 0.5, mask, 0),
        tuple(noise(f"{case.name} seen {depth}", (1, 9, 24)) for depth in ("low", "mid", "high")),
    )
