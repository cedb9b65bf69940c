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
from serve_app.models.families import Flux, QwenImage, Sdxl, Wan, ZImage
from serve_app.models.families.family import BackboneFamily
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear
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
- **streams**: so many GB of weights are copied in each forward. "file": some of these are read from files, as the host
  has too little memory for them.
- The time is that of a step without a negative, by the roofline of a card of that memory. With a negative it is about
  twice that. Steps of small models take longer, as a roofline leaves out the launches of kernels. Cards assumed:
  {cards}.
- **no**: the activations of one row do not fit, with what would.

How it is decided: [gpu.md](gpu.md#models-larger-than-the-card).
"""


def in_eight_bits(network: nn.Module) -> nn.Module:
    """Have all linear layers of a network without numbers keep fp8 weights."""
    for name, layer in list(network.named_modules()):
        if type(layer) is nn.Linear:
            stored = torch.empty(layer.weight.shape, dtype=torch.float8_e4m3fn, device="meta")
            kept = QuantizedLinear(EightBitWeight(stored, torch.empty(1, device="meta")), layer.bias)
            kept.move_to(lambda tensor: tensor, torch.device("meta"), layer.weight.dtype)
            network.set_submodule(name, kept)
    return network


def _model(
    family: BackboneFamily, text_billions: float, vae_mb: int, *, eight: bool = False, itemsize: int = 2
) -> Model:
    network = family.empty().to(family.dtypes[0])
    network = in_eight_bits(network) if eight else network
    text = round(text_billions * 1e9 * itemsize)
    return Model(family, network, part_size(network), PartSize(text, lambda room: text - room * 3 // 4), vae_mb * 10**6)


FLUX = Flux(3072, 24, 19, 38, 4096, 768)
SDXL = Sdxl((320, 640, 1280), (2, 2, 2), (0, 2, 10), 10, 2048, linear=True, vector_dim=1280 + 6 * 256)
QWEN = QwenImage(3072, 24, 60, 3584)
WAN = Wan(5120, 40, 13824, 4096)
IMAGE, VIDEO, LARGE_VIDEO = Size(1024, 1024), Size(832, 480, 81), Size(1280, 720, 81)

MODELS: Mapping[str, tuple[Callable[[], Model], tuple[Size, ...]]] = {
    "SDXL, fp16": (lambda: _model(SDXL, 0.82, 170), (IMAGE,)),
    "Z-Image, bf16": (lambda: _model(ZImage(3840, 30, 30, 2, 2560), 4.0, 170), (IMAGE,)),
    "Flux.1, bf16, T5 in fp16": (lambda: _model(FLUX, 4.9, 170), (IMAGE,)),
    "Flux.1, fp8, T5 in fp8": (lambda: _model(FLUX, 4.9, 170, eight=True, itemsize=1), (IMAGE,)),
    "Qwen-Image, fp8": (lambda: _model(QWEN, 8.3, 250, eight=True, itemsize=1), (IMAGE,)),
    "Wan 14B, fp8": (lambda: _model(WAN, 5.7, 250, eight=True, itemsize=1), (VIDEO, LARGE_VIDEO)),
    "Wan 14B, fp16": (lambda: _model(WAN, 5.7, 250), (VIDEO,)),
}
"""Models by name and format, and the sizes that they are asked for. Text encoders and VAEs are by their file sizes."""


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
