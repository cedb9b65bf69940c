"""Writes docs/plan.md: what becomes of full-size models on cards and hosts of several sizes, as `serve-app plan` says.

python -m docs.plan_matrix
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from serve_app.config.pool import PoolConfig
from serve_app.models.families import (
    AceStep15,
    Anima,
    AuraFlow,
    Boogu,
    Chroma,
    ChromaRadiance,
    ErnieImage,
    Flux,
    Flux2,
    Flux3,
    HiDream,
    HunyuanVideo,
    HunyuanVideo15,
    Ideogram4,
    Kandinsky5,
    Kandinsky5Image,
    Krea2,
    LongCatImage,
    Lotus,
    Ltx2,
    LtxVideo,
    Lumina2,
    MageFlow,
    MiniMaxMusic3,
    OmniGen2,
    OvisImage,
    PixArt,
    PixArtAlpha,
    QwenImage,
    QwenImage21,
    RtDetr4,
    Sam31,
    Sd,
    Sd3,
    SdPose,
    Sdxl,
    SdxlRefiner,
    SeedVr2,
    StableAudio3,
    Unclip,
    Wan,
    Wan22,
    WanAnimate2,
    WanCausal,
    WanScail,
    YuE2,
    ZImage,
)
from serve_app.models.families.ace_step.backbone import Sizes
from serve_app.models.families.dit.anima import LlmAdapter
from serve_app.models.families.dit.krea2 import Attention
from serve_app.models.families.family import BackboneFamily
from serve_app.models.families.unet.svd import Svd
from serve_app.models.families.video.ltx2 import Stream
from serve_app.models.families.video.ltx2_connectors import Connector
from serve_app.models.families.video.minimax_h3 import MiniMaxH3
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
RAMS = (16, 32, 64, 128)
"""Memory of hosts, in GB."""

HEAD = """# What fits a card

Made by `python -m docs.plan_matrix`, with the functions by which a running server decides. For your files, card, size
and host: `serve-app plan MODEL… --gpu 24G --ram 64G`. No card has confirmed a figure.

- **whole**: all weights stay on the card. **turns**: text encoders and diffusion network take turns there.
- **streams 9.0 GB**: each forward copies 9.0 GB of weights onto the card. "file": some of these are read from files, as
  the host has too little memory for them.
- The time is that of a step without a negative or a ControlNet's blocks, by the roofline of a card of that memory. With
  a negative it is about twice that. Steps of small models take longer: a roofline leaves out the launches of kernels.
  Cards assumed:
  {cards}.
- **no**: the activations of one row do not fit, with what would.

How it is decided: [gpu.md](gpu.md#models-larger-than-the-card).
"""


def in_eight_bits(shape: torch.Size) -> QuantizedWeight | None:
    """Return a weight in fp8 with a scale, without numbers."""
    return EightBitWeight(_empty(*shape, dtype=torch.float8_e4m3fn), _empty(1, dtype=torch.float32), largest=1.0)


def for_products(shape: torch.Size) -> QuantizedWeight | None:
    """Return a weight in fp8 that the file lets a card multiply as it is, without numbers."""
    weight = in_eight_bits(shape)
    assert isinstance(weight, EightBitWeight)
    return replace(weight, may=True)


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
            quantized.in_eight_bits = weight.may_multiply is True
            quantized.move_to(lambda tensor: tensor, torch.device("meta"), layer.weight.dtype)
            network.set_submodule(name, quantized)
    return network


class Planned(NamedTuple):
    """A model at its published size. text_billions: weights of its text encoders, of itemsize bytes each.

    make: how its linear layers keep weights; None for 16 bits. vae_mb, added_mb: of what is used beside, as files.
    """

    family: BackboneFamily
    text_billions: float
    vae_mb: int
    sizes: tuple[Size, ...]
    make: Kept | None = None
    itemsize: float = 2
    added_mb: int = 0

    def model(self) -> Model:
        """Return it without numbers."""
        network = self.family.empty().to(self.family.dtypes[0])
        for name, weight in network.named_parameters():
            if self.family.single(name):
                weight.data = weight.data.float()
        network = network if self.make is None else kept(network, self.make)
        nbytes = round(self.text_billions * 1e9 * self.itemsize)
        text = PartSize(nbytes, lambda room: nbytes - room * 3 // 4)
        return Model(self.family, network, part_size(network), text, self.vae_mb * 10**6, self.added_mb * 10**6)


FLUX = Flux(3072, 24, 19, 38, 4096, 768)
FLUX2 = Flux2(6144, 48, 8, 48, 15360, guided=True)
SDXL = Sdxl((320, 640, 1280), (2, 2, 2), (0, 2, 10), 10, 2048, linear=True, vector_dim=1280 + 6 * 256)
REFINER = SdxlRefiner((384, 768, 1536, 1536), (2,) * 4, (0, 4, 4, 0), 4, 1280, linear=True, vector_dim=1280 + 5 * 256)
SD15 = Sd((320, 640, 1280, 1280), (2,) * 4, (1, 1, 1, 0), 1, 768)
UNCLIP = Unclip((320, 640, 1280, 1280), (2,) * 4, (1, 1, 1, 0), 1, 1024, linear=True, vector_dim=2048)
SVD = Svd((320, 640, 1280, 1280), (2,) * 4, (1, 1, 1, 0), 1, 1024, linear=True, concat_channels=4, vector_dim=768)
SD35 = Sd3(width=2432, layers=38, text_width=4096, pooled_width=2048, side=192, normed=True)
HIDREAM = HiDream(2560, doubles=16, singles=32, text_width=4096, states_width=4096, pooled_width=2048)
QWEN = QwenImage(3072, 24, 60, 3584)
KREA2 = Krea2(Attention(6144, 48, 12, 16384), Attention(2560, 20, 20, 6912), 28, 12)
ANIMA = Anima(2048, 16, 28, 256, LlmAdapter(1024, 16, 6, 1024, 32128))
WAN = Wan(5120, 40, 13824, 4096)
SCAIL = WanScail(5120, 40, 13824, 4096, fed=20, image_width=1280)
HUNYUAN_15 = HunyuanVideo15(2048, 54, 0, 3584, 65, patch=1, glyphs=1472, image_width=1152)
HUNYUAN = HunyuanVideo(3072, 20, 40, 4096, 16, 768, guided=True)
KANDINSKY5 = Kandinsky5(1792, 64, 7168, 32, 2, 33, 3584, 768, 512)
KANDINSKY5_IMAGE = Kandinsky5Image(2560, 128, 10240, 50, 2, 16, 3584, 768, 512)
BOOGU = Boogu(3360, 28, 7, 32, 2, 4096, doubles=8)
OVIS = OvisImage(3072, 24, 6, 27, 2048, 0, guided=False)
SEEDVR2_3B = SeedVr2(2560, 20, 128, 32, 6912, 5120, (58, 64), apart=10, gated=True, normed=True)
SEEDVR2_7B = SeedVr2(3072, 24, 128, 36, 12288, 5120, (58, 64), apart=36, gated=False, normed=False)
CONNECTOR = Connector(3840, 30, 2, 128, gated=False)
LTX2 = Ltx2(
    *(Stream(4096, 32), Stream(2048, 32), 48, 3840, CONNECTOR, CONNECTOR),
    gated=False,
    modulates_text=False,
    times_text=False,
    biases=(True, True),
    marks=False,
    projects_text=True,
    halves=False,
    double=True,
    middle=True,
    causal=True,
    cross_time_scale=1.0,
)
ACE_ENCODER = Sizes(2048, 16, 8, 128, 6144, 8)
ACE_STEP_15 = AceStep15(
    main=replace(ACE_ENCODER, layers=24),
    lyric=ACE_ENCODER,
    timbre=replace(ACE_ENCODER, layers=4),
    pooler=replace(ACE_ENCODER, layers=2),
    unpooler=replace(ACE_ENCODER, layers=2),
    text_width=1024,
)
# How long and wide its table of times is, no source says; it is small.
H3 = MiniMaxH3(5376, 50, 2, 56, 128, 14336, 5120, time_width=64, curve=1025)
SONG = Size(0, 0, samples=120 * 44100)
SMALL, IMAGE = (Size(512, 512),), (Size(1024, 1024),)
SHARP = Size(1280, 720, 21)
VIDEO, VIDEOS = (Size(832, 480, 81),), (Size(832, 480, 81), Size(1280, 720, 81))
# Twice what the model is trained for, so that a row has no room on small cards.
LONG = Size(1280, 720, 161)

MODELS: Mapping[str, Planned] = {
    "SD 1.5, fp16": Planned(SD15, 0.12, 170, SMALL),
    "SD 2.1 unCLIP, fp16": Planned(UNCLIP, 0.34, 170, SMALL, added_mb=610),
    "SDXL, fp16": Planned(SDXL, 0.82, 170, IMAGE),
    "SDXL, fp16, a LoRA, a ControlNet and an upscaler": Planned(SDXL, 0.82, 240, IMAGE, added_mb=2700),
    "SDXL's refiner, fp16": Planned(REFINER, 0.69, 170, IMAGE),
    "PixArt Σ, fp16, T5 in fp8": Planned(PixArt(1152, 28, 4096), 4.8, 170, IMAGE, itemsize=1),
    "SD 3.5 large, bf16, T5 in fp8": Planned(SD35, 5.6, 170, IMAGE, itemsize=1),
    "AuraFlow, fp16": Planned(AuraFlow(3072, 4, 32, 2048, 96), 1.2, 170, IMAGE),
    "Lumina 2, bf16": Planned(Lumina2(2304, 24, 8, 26, 2, 2304), 2.6, 170, IMAGE),
    "Anima, bf16": Planned(ANIMA, 0.6, 250, IMAGE),
    "OmniGen2, fp16": Planned(OmniGen2(2520, 21, 7, 32, 2, 2048), 3.8, 170, IMAGE),
    "Z-Image, bf16": Planned(ZImage(3840, 30, 30, 2, 2560), 4.0, 170, IMAGE),
    "Chroma, bf16, T5 in fp8": Planned(Chroma(3072, 24, 19, 38, 4096), 4.8, 170, IMAGE, itemsize=1),
    "Flux.1, bf16, T5 in fp16": Planned(FLUX, 4.9, 170, IMAGE),
    "Flux.1, fp8, T5 in fp8": Planned(FLUX, 4.9, 170, IMAGE, in_eight_bits, itemsize=1),
    "Flux.1, fp8 that may be multiplied, T5 in fp8": Planned(FLUX, 4.9, 170, IMAGE, for_products, itemsize=1),
    "Flux.1, fp8, a LoRA and a ControlNet": Planned(FLUX, 4.9, 170, IMAGE, in_eight_bits, itemsize=1, added_mb=4700),
    "Flux.1, NVFP4, T5 in fp8": Planned(FLUX, 4.9, 170, IMAGE, in_nvfp4, itemsize=1),
    "Flux.1, GGUF Q4_K, T5 in Q4_K": Planned(FLUX, 4.9, 170, IMAGE, in_q4_k, itemsize=0.5625),
    "Flux.2 dev, fp8, Mistral in fp8": Planned(FLUX2, 23.6, 340, IMAGE, in_eight_bits, itemsize=1),
    "Flux.2 dev, GGUF Q4_K": Planned(FLUX2, 23.6, 340, IMAGE, in_q4_k, itemsize=0.5625),
    "Flux.3 klein, 8 bits": Planned(Flux3(3072, 24, 5, 28, 20480), 4.4, 340, IMAGE, in_eight_bits, itemsize=1),
    "LongCat-Image, bf16, Qwen in fp8": Planned(LongCatImage(3072, 24, 10, 20, 3584, 0), 8.3, 170, IMAGE, itemsize=1),
    "Mage-Flow, 8 bits": Planned(MageFlow(3072, 24, 12, 2560), 4.4, 280, IMAGE, in_eight_bits, itemsize=1),
    "ERNIE-Image, bf16": Planned(ErnieImage(4096, 36, 12288, 3072), 3.4, 340, IMAGE),
    "Ovis-Image, bf16": Planned(OVIS, 1.7, 170, IMAGE),
    "Boogu-Image, fp8, Qwen in fp8": Planned(BOOGU, 8.8, 170, IMAGE, in_eight_bits, itemsize=1),
    "Kandinsky 5 Image, bf16, Qwen in fp8": Planned(KANDINSKY5_IMAGE, 8.4, 170, IMAGE, itemsize=1),
    "Krea 2, 8 bits": Planned(KREA2, 4.4, 250, IMAGE, in_eight_bits, itemsize=1),
    "Ideogram 4, fp8": Planned(Ideogram4(4608, 18, 34, 12288, 53248), 8.8, 340, IMAGE, in_eight_bits, itemsize=1),
    "HiDream, fp8, texts in fp8": Planned(HIDREAM, 13.7, 170, IMAGE, in_eight_bits, itemsize=1),
    "Qwen-Image, fp8": Planned(QWEN, 8.3, 250, IMAGE, in_eight_bits, itemsize=1),
    "Qwen-Image, GGUF Q4_K": Planned(QWEN, 8.3, 250, IMAGE, in_q4_k, itemsize=0.5625),
    "Qwen-Image 2.1, 8 bits": Planned(QwenImage21(4096, 32, 32, 4096), 8.8, 650, IMAGE, in_eight_bits, itemsize=1),
    # An image encoder, ViT-H, is its text encoder.
    "Stable Video Diffusion, fp16": Planned(SVD, 0.63, 200, (Size(1024, 576, 14),)),
    "Wan 2.2 5B, fp16, UMT5 in fp8": Planned(Wan22(3072, 30, 14336, 4096, fed=48), 5.7, 1410, VIDEOS, itemsize=1),
    "Wan 14B, fp8": Planned(WAN, 5.7, 250, (*VIDEOS, LONG), in_eight_bits, itemsize=1),
    "Wan 14B, fp16": Planned(WAN, 5.7, 250, VIDEO),
    "Wan 14B, GGUF Q4_K": Planned(WAN, 5.7, 250, VIDEO, in_q4_k, itemsize=0.5625),
    "Wan SCAIL 2, 8 bits": Planned(SCAIL, 5.7, 250, VIDEO, in_eight_bits, itemsize=1),
    "Kandinsky 5, bf16, Qwen in fp8": Planned(KANDINSKY5, 8.4, 490, VIDEO, itemsize=1),
    "HunyuanVideo, bf16, Llama in fp8": Planned(HUNYUAN, 8.2, 490, VIDEO, itemsize=1),
    "HunyuanVideo 1.5, fp16, Qwen in fp8": Planned(HUNYUAN_15, 8.3, 2520, VIDEOS, itemsize=1),
    "SeedVR2 3B, 8 bits": Planned(SEEDVR2_3B, 0, 500, (SHARP,), in_eight_bits),
    "SeedVR2 7B, 8 bits": Planned(SEEDVR2_7B, 0, 500, (SHARP,), in_eight_bits),
    "LTX-Video 2B, bf16, T5 in fp16": Planned(LtxVideo(Stream(2048, 32), 28, 4096), 4.8, 840, VIDEO),
    "LTX-2 19B, fp8, Gemma in fp8": Planned(LTX2, 12.2, 2550, VIDEOS, in_eight_bits, itemsize=1),
    "ACE-Step 1.5, bf16": Planned(ACE_STEP_15, 2.3, 340, (SONG,)),
    # The medium one. Its autoencoder, of 0.85 billion weights, is counted in 16 bits.
    "Stable Audio 3, fp16": Planned(StableAudio3(1536, 64, 24, 6144, 64, 768), 0.28, 1700, (SONG,)),
    "MiniMax Music 3, fp16, its text in 8 bits": Planned(
        MiniMaxMusic3(2048, 36, 8192, 4096, 2048, 256, 32), 8.3, 240, (SONG,), itemsize=1
    ),
    "YuE 2, 8 bits": Planned(YuE2(2048, 28, 6144, 16, 8, 128, 24576), 2.2, 340, (SONG,), in_eight_bits, itemsize=1),
    "MiniMax H3 pruned, 8 bits, its text in 4": Planned(H3, 27.1, 3400, VIDEOS, in_eight_bits, itemsize=0.58),
    "MiniMax H3 pruned, 8 bits, its Fun ControlNet": Planned(
        *(H3, 27.1, 3400, VIDEO, in_eight_bits), itemsize=0.58, added_mb=2140
    ),
}
"""Models by name and format, and the sizes that they are asked for. What is beside a network is by its file size."""
NOT_PLANNED: Mapping[type[BackboneFamily], str] = {
    ChromaRadiance: "the network is Chroma's but for its first and last layers",
    PixArtAlpha: "the network is PixArt Σ's",
    Sam31: "it segments images and samples none",
    RtDetr4: "it finds objects in images and samples none",
    SdPose: "it finds poses in images and samples none; the network is that of SD 2.1",
    WanAnimate2: "the network is Wan 14B's for images; its pose video takes as much again",
    WanCausal: "the network is Wan's for texts; what it keeps of a video is in the plan of a job",
    Lotus: "the network is that of SD 2.1 unCLIP but for one layer",
}
"""Backbones that have no row, and why."""


def rows(names: str = "") -> Iterator[tuple[str, Mapping[int, list[Estimate]]]]:
    """Yield what becomes of each model and size, by the memory of the host, on each card.

    names: what the names of the models begin with.
    """
    cells = PoolConfig(name="plan").max_cells
    cards = {gib: next(card for card in reversed(CARDS) if card.gib <= gib) for gib in GPUS}
    for name, planned in MODELS.items():
        if not name.startswith(names):
            continue
        model = planned.model()
        for size in planned.sizes:
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
        lines = [line(name, of_ram[ram]) for name, of_ram in made]
        parts.append(f"## A host of {ram} GB\n")
        if ram == RAMS[-1]:
            parts.append(f"The rows that differ from those of {RAMS[-2]} GB:\n")
            before = {line(name, of_ram[RAMS[-2]]) for name, of_ram in made}
            lines = [row for row in lines if row not in before]
        parts += [f"| model, size | {' | '.join(f'{gib} GB' for gib in GPUS)} |", "|---|" + "---|" * len(GPUS)]
        parts += [*lines, ""]
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
