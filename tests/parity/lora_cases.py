"""Small deterministic LoRAs of one layer, one a layout: what figures of ComfyUI's merging were made with."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Shape: TypeAlias = tuple[int, ...]

LINEAR: Shape = (8, 12)
CONVOLUTION: Shape = (8, 12, 3, 3)
POINTWISE: Shape = (8, 12, 1, 1)
SQUARE: Shape = (8, 8)
NORM: Shape = (8,)
STRENGTHS = (1.0, 0.7, -0.5)


def drawn(name: str, *shape: int) -> Tensor:
    """Return normal numbers that depend on the name alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def _case(name: str, alpha: float | None, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    # Keyword names cannot hold dots, so "__" stands for one.
    tensors = {key.replace("__", "."): drawn(f"{name} {key}", *of) * 0.4 for key, of in shapes.items()}
    return tensors | ({} if alpha is None else {"alpha": torch.tensor(alpha)})


def cases() -> dict[str, tuple[Shape, dict[str, Tensor]]]:
    """Return name -> (the weight's shape, the layer's tensors by suffix)."""
    made: dict[str, tuple[Shape, dict[str, Tensor]]] = {}

    def add(name: str, shape: Shape, alpha: float | None = 3.0, /, **shapes: Shape) -> None:
        made[name] = (shape, _case(name, alpha, shapes))

    for up, down in (
        ("lora_up__weight", "lora_down__weight"),
        ("lora_B__weight", "lora_A__weight"),
        ("lora__up__weight", "lora__down__weight"),
        ("lora_B", "lora_A"),
        ("lora_linear_layer__up__weight", "lora_linear_layer__down__weight"),
        ("lora_B__default__weight", "lora_A__default__weight"),
    ):
        add(f"lora {up}", LINEAR, **{up: (8, 4), down: (4, 12)})
    lora: dict[str, Shape] = {"lora_up__weight": (8, 4), "lora_down__weight": (4, 12)}
    add("lora without alpha", LINEAR, None, **lora)
    add("lora on a pointwise convolution", POINTWISE, **lora)
    add("locon", CONVOLUTION, lora_up__weight=(8, 4, 1, 1), lora_down__weight=(4, 12, 3, 3))
    core = {"lora_up__weight": (8, 4, 1, 1), "lora_mid__weight": (4, 4, 3, 3), "lora_down__weight": (4, 12, 1, 1)}
    add("locon with a core", CONVOLUTION, **core)
    add("dora on outputs", LINEAR, **lora, dora_scale=(8, 1))
    add("dora on inputs", LINEAR, **lora, dora_scale=(1, 12))
    add("dora on a convolution", CONVOLUTION, **core, dora_scale=(8, 1, 1, 1))
    add("dora on a convolution's inputs", CONVOLUTION, **core, dora_scale=(1, 12, 1, 1))

    halves: dict[str, Shape] = {"hada_w1_a": (8, 3), "hada_w1_b": (3, 12), "hada_w2_a": (8, 3), "hada_w2_b": (3, 12)}
    add("loha", LINEAR, **halves)
    add("loha with dora", LINEAR, **halves, dora_scale=(8, 1))
    wide: dict[str, Shape] = {"hada_w1_b": (3, 108), "hada_w2_b": (3, 108)}
    add("loha on a convolution", CONVOLUTION, **halves | wide)
    tucker: dict[str, Shape] = {
        "hada_w1_a": (3, 8),
        "hada_w2_a": (3, 8),
        "hada_t1": (3, 3, 3, 3),
        "hada_t2": (3, 3, 3, 3),
    }
    add("loha with cores", CONVOLUTION, **halves | tucker)

    add("lokr", LINEAR, lokr_w1=(2, 3), lokr_w2=(4, 4))
    add("lokr of low rank", LINEAR, lokr_w1_a=(2, 2), lokr_w1_b=(2, 3), lokr_w2_a=(4, 3), lokr_w2_b=(3, 4))
    add("lokr half of low rank", LINEAR, lokr_w1=(2, 3), lokr_w2_a=(4, 3), lokr_w2_b=(3, 4), dora_scale=(8, 1))
    add("lokr on a convolution", CONVOLUTION, lokr_w1=(2, 3), lokr_w2=(4, 4, 3, 3))
    add(
        "lokr with a core",
        CONVOLUTION,
        lokr_w1_a=(2, 2),
        lokr_w1_b=(2, 3),
        lokr_t2=(3, 3, 3, 3),
        lokr_w2_a=(3, 4),
        lokr_w2_b=(3, 4),
    )

    new = {"a1__weight": (12, 4), "a2__weight": (4, 12), "b1__weight": (8, 4), "b2__weight": (4, 12)}
    add("glora", LINEAR, **new)
    add("glora with dora", LINEAR, **new, dora_scale=(8, 1))
    old = {"a1__weight": (4, 12), "a2__weight": (12, 4), "b1__weight": (4, 12), "b2__weight": (8, 4)}
    add("old glora", LINEAR, **old)
    square = {"a1__weight": (8, 8), "a2__weight": (8, 8), "b1__weight": (8, 8), "b2__weight": (8, 8)}
    add("glora of full rank", SQUARE, **square)
    add("glora on a convolution", CONVOLUTION, **new | {"b2__weight": (4, 108)})

    add("oft", LINEAR, None, oft_blocks=(2, 4, 4))
    add("oft with a limit", LINEAR, 0.5, oft_blocks=(2, 4, 4), rescale=(8, 1))
    add("oft with dora", CONVOLUTION, 2.0, oft_blocks=(2, 4, 4), dora_scale=(8, 1, 1, 1))
    add("boft", LINEAR, 0.0, oft_blocks=(3, 4, 2, 2))
    add("boft with a limit", CONVOLUTION, 0.5, oft_blocks=(2, 2, 4, 4), rescale=(8, 1, 1, 1))
    add("boft without alpha", LINEAR, None, oft_blocks=(3, 4, 2, 2))

    add("diff", CONVOLUTION, None, diff=CONVOLUTION)
    add("diff of another shape", LINEAR, None, diff=SQUARE)
    add("set", LINEAR, None, set_weight=LINEAR)
    add("norm", NORM, None, w_norm=NORM)
    add("lora and diff", LINEAR, **lora, diff=LINEAR)
    add("lora that does not fit", LINEAR, lora_up__weight=(8, 4), lora_down__weight=(4, 16))
    return made
