"""Writes docs/plan.md: what becomes of full-size models on cards and hosts of several sizes, as `serve-app plan` says.

python -m docs.plan_matrix
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from serve_app.config.pool import PoolConfig
from serve_app.models.families import Flux, Flux2, HiDream, QwenImage, Sd3, Sdxl, Wan, ZImage
from serve_app.models.families.family import BackboneFamily
from serve_app.models.quantization.block_scales import Nvfp4Weight
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.ggml_blocks import TYPES, BlockWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear, QuantizedWeight
from serve_app.models.weights.memory_plan import PartSize
from serve_app.models.weights.planner import Estimate, Model, Size, estimate, part_size
from serve_app.models.weights.roofline import CARDS, GIB
from serve_app.replica.host import OWN_SHARE

PAGE = Path(__file__).with_name("plan.md")
GPUS = (8, 12, 16, 24, 32, 48, 80)
"""Memory of cards, in GB."""
RAMS = (16, 32, 64)
"""Memory of hosts, in GB. A larger one makes no difference to these models."""

HEAD = """# What fits a card

Made by `python -m docs.plan_matrix`, with the functions by which a running server decides. For your files, card, size
and host: `serve-app plan MODEL… --gpu 24G --ram 64G`. No card has confirmed a figure.

- **whole**: all weights stay on the card. **turns**: text encoders and diffusion network take turns there.
- **streams 9.0 GB**: each forward copies 9.0 GB of weights onto the card. "file": some of these are read from files, as
  the host has too little memory for them.
- The time is that of a step without a negative, by the roofline of a card of that memory. With a negative it is about
  twice that. Steps of small models take longer, as a roofline leaves out the launches of kernels. Cards assumed:
  {cards}.
- **no**: the activations of one row do not fit, with what would.

How it is decided: [gpu.md](gpu.md#models-larger-than-the-card).
"""


def in_eight_bits(shape: torch.Size) -> QuantizedWeight | None:
    """Return a weight in fp8 with a scale, without numbers."""
    return EightBitWeight(_empty(*shape, dtype=torch.float8_e4m3fn), _empty(1, dtype=torch.float32))


def in_nvfp4(shape: torch.Size) -> QuantizedWeight | None:
    """Return a weight in NVFP4, without numbers; None for one that its blocks do not fit."""
    out, inside = shape
    if inside % 16:
        return None
    return Nvfp4Weight(_empty(out, inside // 2), _empty(out, inside // 16), _empty(dtype=torch.float32))


def in_q4_k(shape: torch.Size) -> QuantizedWeight | None:
    """Return a weight in GGUF's Q4_K, without numbers; None for one that its blocks do not fit."""
    out, inside, known = *shape, TYPES["Q4_K"]
    return None if inside % known.size else BlockWeight(_empty(out, inside // known.size * known.nbytes), "Q4_K")


def _empty(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


Kept = Callable[[torch.Size], QuantizedWeight | None]


def kept(network: nn.Module, make: Kept) -> nn.Module:
    """Have the linear layers of a network without numbers keep their weights quantized."""
    for name, layer in list(network.named_modules()):
        if type(layer) is nn.Linear and (weight := make(layer.weight.shape)) is not None:
            quantized = QuantizedLinear(weight, layer.bias)
            quantized.move_to(lambda tensor: tensor, torch.device("meta"), layer.weight.dtype)
            network.set_submodule(name, quantized)
    return network


def _model(
    family: BackboneFamily,
    text_billions: float,
    vae_mb: int,
    make: Kept | None = None,
    *,
    itemsize: float = 2,
    added_mb: int = 0,
) -> Model:
    network = family.empty().to(family.dtypes[0])
    network = network if make is None else kept(network, make)
    nbytes = round(text_billions * 1e9 * itemsize)
    text = PartSize(nbytes, lambda room: nbytes - room * 3 // 4)
    return Model(family, network, part_size(network), text, vae_mb * 10**6, added_mb * 10**6)


FLUX = Flux(3072, 24, 19, 38, 4096, 768)
FLUX2 = Flux2(6144, 48, 8, 48, 15360, guided=True)
SDXL = Sdxl((320, 640, 1280), (2, 2, 2), (0, 2, 10), 10, 2048, linear=True, vector_dim=1280 + 6 * 256)
SD35 = Sd3(width=2432, layers=38, text_width=4096, pooled_width=2048, side=192, normed=True)
HIDREAM = HiDream(2560, doubles=16, singles=32, text_width=4096, states_width=4096, pooled_width=2048)
QWEN = QwenImage(3072, 24, 60, 3584)
WAN = Wan(5120, 40, 13824, 4096)
IMAGE, VIDEO, LARGE_VIDEO = Size(1024, 1024), Size(832, 480, 81), Size(1280, 720, 81)

MODELS: Mapping[str, tuple[Callable[[], Model], tuple[Size, ...]]] = {
    "SDXL, fp16": (lambda: _model(SDXL, 0.82, 170), (IMAGE,)),
    "SDXL, fp16, a LoRA, a ControlNet and an upscaler": (lambda: _model(SDXL, 0.82, 240, added_mb=2700), (IMAGE,)),
    "SD 3.5 large, bf16, T5 in fp8": (lambda: _model(SD35, 5.6, 170, itemsize=1), (IMAGE,)),
    "Z-Image, bf16": (lambda: _model(ZImage(3840, 30, 30, 2, 2560), 4.0, 170), (IMAGE,)),
    "Flux.1, bf16, T5 in fp16": (lambda: _model(FLUX, 4.9, 170), (IMAGE,)),
    "Flux.1, fp8, T5 in fp8": (lambda: _model(FLUX, 4.9, 170, in_eight_bits, itemsize=1), (IMAGE,)),
    "Flux.1, fp8, a LoRA and a ControlNet": (
        lambda: _model(FLUX, 4.9, 170, in_eight_bits, itemsize=1, added_mb=4700),
        (IMAGE,),
    ),
    "Flux.1, NVFP4, T5 in fp8": (lambda: _model(FLUX, 4.9, 170, in_nvfp4, itemsize=1), (IMAGE,)),
    "Flux.1, GGUF Q4_K, T5 in Q4_K": (lambda: _model(FLUX, 4.9, 170, in_q4_k, itemsize=0.5625), (IMAGE,)),
    "Flux.2 dev, fp8, Mistral in fp8": (lambda: _model(FLUX2, 23.6, 340, in_eight_bits, itemsize=1), (IMAGE,)),
    "Flux.2 dev, GGUF Q4_K": (lambda: _model(FLUX2, 23.6, 340, in_q4_k, itemsize=0.5625), (IMAGE,)),
    "HiDream, fp8, texts in fp8": (lambda: _model(HIDREAM, 13.7, 170, in_eight_bits, itemsize=1), (IMAGE,)),
    "Qwen-Image, fp8": (lambda: _model(QWEN, 8.3, 250, in_eight_bits, itemsize=1), (IMAGE,)),
    "Qwen-Image, GGUF Q4_K": (lambda: _model(QWEN, 8.3, 250, in_q4_k, itemsize=0.5625), (IMAGE,)),
    "Wan 14B, fp8": (lambda: _model(WAN, 5.7, 250, in_eight_bits, itemsize=1), (VIDEO, LARGE_VIDEO)),
    "Wan 14B, fp16": (lambda: _model(WAN, 5.7, 250), (VIDEO,)),
    "Wan 14B, GGUF Q4_K": (lambda: _model(WAN, 5.7, 250, in_q4_k, itemsize=0.5625), (VIDEO,)),
}
"""Models by name and format, and the sizes that they are asked for. What is beside a network is by its file size."""


def rows(names: str = "") -> Iterator[tuple[str, Mapping[int, list[Estimate]]]]:
    """Yield what becomes of each model and size, by the memory of the host, on each card.

    names: what the names of the models begin with.
    """
    cells = PoolConfig(name="plan").max_cells
    cards = {gib: next(card for card in reversed(CARDS) if card.gib <= gib) for gib in GPUS}
    for name, (make, sizes) in MODELS.items():
        if not name.startswith(names):
            continue
        model = make()
        for size in sizes:
            estimated = partial(estimate, model, size, model.cost(size))
            yield (
                f"{name}, {size}",
                {
                    ram: [estimated(cards[gib], gib * GIB, round(OWN_SHARE * ram * GIB), cells) for gib in GPUS]
                    for ram in RAMS
                },
            )


def page() -> str:
    """Return the page as it should be."""
    cards = ", ".join(f"{card.gib} GB: {card.name}" for card in CARDS if card.gib in GPUS)
    parts, made = [HEAD.replace("{cards}", cards)], list(rows())
    for ram in RAMS:
        parts += [f"## A host of {ram} GB\n", f"| model, size | {' | '.join(f'{gib} GB' for gib in GPUS)} |"]
        parts.append("|---|" + "---|" * len(GPUS))
        parts += [line(name, of_ram[ram]) for name, of_ram in made]
        parts.append("")
    return "\n".join(parts)


def line(name: str, made: Sequence[Estimate]) -> str:
    """Return the line of a table."""
    return f"| {name} | {' | '.join(map(_cell, made))} |"


def _cell(made: Estimate) -> str:
    job = made.job
    if job.outcome == "too large":
        return f"no: {made.change}"
    streamed = job.backbone.streamed_bytes
    how = {"whole": "whole", "evicting": "turns"}.get(job.outcome, "turns")
    if streamed:
        how = f"streams {streamed / 1e9:.1f} GB" + (", file" if job.backbone.file_bytes else "")
    return f"{how}, {made.row_s:.2g} s"


if __name__ == "__main__":
    PAGE.write_text(page())
