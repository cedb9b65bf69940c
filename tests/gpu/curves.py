"""What forwards, decodes and texts take by rows and size, and what a forward might run on otherwise."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import nan

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.steps import as_on_a_card
from serve_app.models.backbone import RecipeBackbone
from serve_app.models.forward import EAGER, Replays
from serve_app.models.forward_cost import ForwardCost, forward_cost
from serve_app.models.lora.adapters import LowRank
from serve_app.models.lora.layers import LoraSet
from serve_app.models.weights.upload import Ring, copies_of, uploading
from serve_app.sampling.forward import denoise
from tests.gpu.bench import Bench
from tests.gpu.models import FULL_VAE, SMALL_VAE, Model, streamed, vae
from tests.gpu.predictions import at_least, goal, least_s
from tests.gpu.results import Figure

ROWS = (1, 2, 4, 8, 16, 32)
SIDES = (512, 1024, 2048)
TEXTS = (1, 16)
RANK = 16
SETS = (1, 8)

ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
"""A card's kernels for attention. A CPU has the first alone."""


def of_card(bench: Bench) -> Iterator[Figure]:
    """Measure what the card can do at most."""
    side = 256 if bench.small else 8192
    a = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    took_s, _ = bench.seconds(lambda: a @ a)
    yield Figure("matmul 8192³, bf16", 2 * side**3 / took_s / 1e12, "TFLOP/s")
    took_s, _ = bench.seconds(a.clone)
    yield Figure("copy on the card", 2 * a.nbytes / took_s / 1e12, "TB/s")
    weights = torch.randn(2**16 if bench.small else 2**29, dtype=torch.float16)
    ring = Ring(bench.device, copies_of(bench.device))
    took_s, _ = bench.seconds(partial(_upload, ring, weights))
    yield Figure("weights from the host's memory", weights.nbytes / took_s / 1e9, "GB/s")


def _upload(ring: Ring, weights: torch.Tensor) -> None:
    with uploading(ring.device, ring) as send:
        send(weights)


def of_forwards(bench: Bench) -> Iterator[Figure]:
    """Measure forwards by rows, what the host has to do for one, and what one of eight rows might run on otherwise."""
    for model in bench.models:
        replayed = model.backbone(bench.device, bench.dtype)
        backbone = model.of(replayed.network.module, Replays())
        for rows in ROWS:
            cost = row_cost(model, rows, bench.dtype)
            floor_s = least_s(cost, bench.device)
            work = partial(denoise, model.pieces(backbone, rows))
            took_s, asked_s = bench.seconds(work)
            yield Figure(f"{model.name}, forward of {rows} rows", 1000 * took_s, "ms", at_least(floor_s))
            again = partial(denoise, model.pieces(replayed, rows))
            for _ in range(EAGER):
                again()
            took_again_s, asked_again_s = bench.seconds(again)
            name = f"{model.name}, replayed forward of {rows} rows"
            yield Figure(name, 1000 * took_again_s, "ms", at_least(floor_s), goal(floor_s))
            if rows == 2:
                yield Figure(f"{model.name}, host asks for a forward", 1000 * asked_s, "ms")
                yield Figure(f"{model.name}, host asks for a replayed forward", 1000 * asked_again_s, "ms")
                name = f"{model.name}, kernels of a forward"
                yield Figure(name, bench.kernels(work), "", str(sum(cost.kernels.values())))
            if rows == 8:
                row_mib, planned_mib = bench.peak_bytes(work) / rows / 2**20, cost.peak_bytes / rows / 2**20
                yield Figure(f"{model.name}, memory of a row", row_mib, "MiB", f"{planned_mib:.0f} MiB")
                yield from _otherwise(bench, model, backbone, took_s)
        del backbone, replayed


def row_cost(model: Model, rows: int, dtype: torch.dtype) -> ForwardCost:
    """Return the cost of a forward, as the planner counts it."""
    cells = model.side // 8
    x, [(cond, options)] = torch.empty(rows, 4, cells, cells), model.conditioning(0)
    with as_on_a_card():
        return forward_cost(model.family, model.family.empty().to(dtype), x, cond, options)


def _otherwise(bench: Bench, model: Model, backbone: RecipeBackbone, usual_s: float) -> Iterator[Figure]:
    """Measure forwards of eight rows over the usual one: of unequal texts, other kernels and layouts, and LoRAs."""
    pieces = model.pieces(backbone, 8)
    alike_s, _ = bench.seconds(partial(denoise, model.pieces(backbone, 8, (154,))))
    unlike_s, _ = bench.seconds(partial(denoise, model.pieces(backbone, 8, (77, 154))))
    yield Figure(f"{model.name}, unequal texts over equal ones", unlike_s / alike_s, "")
    for name, kernel in ATTENTION.items() if bench.device.type == "cuda" else list(ATTENTION.items())[:1]:
        try:
            with sdpa_kernel(kernel):
                took_s, _ = bench.seconds(partial(denoise, pieces))
        except RuntimeError as error:
            # Not every kernel takes heads of every width: cuDNN's does not take the 160 of SD 1.5.
            if "kernel" not in str(error):
                raise
            yield Figure(f"{model.name}, attention by {name} over the usual", nan, "no kernel")
        else:
            yield Figure(f"{model.name}, attention by {name} over the usual", took_s / usual_s, "")
    if bench.device.type == "cuda":
        # Packed weights of a CPU have a layout of their own.
        last = model.of(copy.deepcopy(backbone.network.module).to(memory_format=torch.channels_last), Replays())  # type: ignore[call-overload]
        took_s, _ = bench.seconds(partial(denoise, model.pieces(last, 8)))
        yield Figure(f"{model.name}, channels last over the usual", took_s / usual_s, "")
        streams = copy.deepcopy(backbone.network.module).cpu()
        streamed(streams, bench.device, bench.dtype, 0.5)
        took_s, _ = bench.seconds(partial(denoise, model.pieces(model.of(streams, Replays()), 8)))
        yield Figure(f"{model.name}, half of it on the card over the usual", took_s / usual_s, "", "1.0 to 1.1")
        del streams
    for count in SETS:
        sets = [lora_set(seed, backbone.network.module) for seed in range(count)]
        own = [replace(p, backbone=replace(backbone, loras=sets[i % count])) for i, p in enumerate(pieces)]
        took_s, _ = bench.seconds(partial(denoise, own))
        yield Figure(f"{model.name}, {count} LoRAs over none", took_s / usual_s, "")


def lora_set(seed: int, network: nn.Module) -> LoraSet:
    """Return a LoRA of rank RANK on all linear layers of a UNet's transformers, of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for name, layer in network.named_modules():
        shape: tuple[int, ...] = tuple(getattr(getattr(layer, "weight", None), "shape", ()))
        if ".transformer_blocks." in name and len(shape) == 2:
            down, up = (torch.randn(s, generator=generator) / 100 for s in ((RANK, shape[1]), (shape[0], RANK)))
            adapters[f"{name}.weight"] = LowRank(up, down, 1.0)
    return LoraSet(f"set {seed}", network, [(adapters, 1.0)])


def of_ends(bench: Bench) -> Iterator[Figure]:
    """Measure what stands before and after sampling: texts and decodes."""
    encoder = bench.models[0].clip(bench.device)
    for count in TEXTS:
        texts = [f"a house, {i}" for i in range(count)]
        took_s, _ = bench.seconds(partial(encoder.encode, texts))
        yield Figure(f"CLIP-L, {count} texts at once", 1000 * took_s, "ms")
    family, factor = (SMALL_VAE, 16) if bench.small else (FULL_VAE, 1)
    decoder = vae(family, bench.device, torch.bfloat16 if bench.device.type == "cuda" else torch.float32)
    for side in SIDES:
        work = partial(decoder.decode, torch.randn(1, 4, side // 8 // factor, side // 8 // factor))
        took_s, _ = bench.seconds(work)
        yield Figure(f"VAE, decode of {side}×{side}", 1000 * took_s, "ms")
        if side == 1024:
            yield Figure("VAE, memory of a megapixel", bench.peak_bytes(work) / 2**20 / 1.048576, "MiB")
