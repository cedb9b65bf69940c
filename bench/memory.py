"""What memory a model of few bits takes, over its file: `python -m bench.memory`.

A Flux of 12 B's width, a few blocks deep, is written in each format with random weights; each file is loaded in a
process of its own, which then runs a forward. Counted is what the replica's budget of weights is charged with. Measured
is the process's memory after the forward beyond that before loading, pages of the mapped file included; the peak is
what it had at most in between.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from serve_app.models.families import Flux
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.files.layout import joined, origins
from serve_app.models.files.safetensors_file import SafetensorsFile, Written
from serve_app.models.quantization.ggml_blocks import TYPES
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from serve_app.store.models.catalog import Catalog

FLUX = Flux(width=3072, heads=24, doubles=1, singles=2, text_width=4096, pooled_width=768)
SIDE, TOKENS = 16, 32
"""Latent cells along a side, and tokens of the text."""

Tensors = Iterator[tuple[str, Tensor]]


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the network's tensors by the names of the published file."""
    empty = FLUX.empty().state_dict()
    return {
        theirs: tuple(joined([(empty[place.name], place) for place in places]).shape)
        for theirs, places in origins(empty, FLUX.table()).items()
    }


def bf16(name: str, shape: tuple[int, ...]) -> Tensors:
    yield name, (torch.randn(shape) / shape[-1] ** 0.5).to(torch.bfloat16)


def fp8(name: str, shape: tuple[int, ...]) -> Tensors:
    if len(shape) < 2:
        yield from bf16(name, shape)
        return
    yield name, torch.randn(shape).to(torch.float8_e4m3fn)
    yield name.removesuffix("weight") + "weight_scale", torch.tensor(shape[-1] ** -0.5)
    yield from _said(name, "float8_e4m3fn")


def nvfp4(name: str, shape: tuple[int, ...]) -> Tensors:
    if len(shape) < 2 or shape[1] % 64 or shape[0] % 128:
        yield from bf16(name, shape)
        return
    layer = name.removesuffix("weight")
    yield name, torch.randint(0, 256, (shape[0], shape[1] // 2), dtype=torch.uint8)
    yield f"{layer}weight_scale", (torch.rand(shape[0], shape[1] // 16) + 0.5).to(torch.float8_e4m3fn)
    yield f"{layer}weight_scale_2", torch.tensor(0.3 * shape[1] ** -0.5)
    yield from _said(name, "nvfp4")


def _said(name: str, format: str) -> Tensors:
    said = f'{{"format": "{format}"}}'.encode()
    yield name.removesuffix("weight") + "comfy_quant", torch.tensor(list(said), dtype=torch.uint8)


def write_safetensors(path: Path, stored: Callable[[str, tuple[int, ...]], Tensors]) -> None:
    """Write the model as a format stores it."""
    made = [pair for name, shape in shapes().items() for pair in stored(name, shape)]
    tensors = [Written(name, tuple(t.shape), t.dtype, lambda t=t: t) for name, t in made]  # type: ignore[misc]
    with path.open("wb") as file:
        for piece in SafetensorsFile(tensors, {}):
            file.write(piece)


def write_gguf(path: Path, kind: str) -> None:
    """Write the model in ggml's blocks of a kind, which begin with two numbers in half precision."""
    known, draw = TYPES[kind], np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "flux")
    for name, shape in shapes().items():
        if len(shape) < 2 or shape[1] % known.size:
            writer.add_tensor(name, (draw.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32))
            continue
        blocks = draw.integers(0, 256, (shape[0], shape[1] // known.size, known.nbytes), dtype=np.uint8)
        blocks[..., :4] = np.array([1e-5, 1e-4], np.float16).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(shape[0], -1), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


FORMATS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "bf16": ("diffusion_models/a.safetensors", lambda path: write_safetensors(path, bf16)),
    "fp8, scaled": ("diffusion_models/a.safetensors", lambda path: write_safetensors(path, fp8)),
    "nvfp4": ("diffusion_models/a.safetensors", lambda path: write_safetensors(path, nvfp4)),
    "GGUF Q4_K": ("unet_gguf/a.gguf", lambda path: write_gguf(path, "Q4_K")),
}


def taken(models: Path, folder: str, name: str) -> tuple[int, int, int]:
    """Return the bytes that are counted, those measured after a forward, and those at the peak."""
    torch.set_grad_enabled(False)
    weights = Weights(Catalog(models), torch.device("cpu"), dtype="bf16", vae_dtype="auto", budget_bytes=2**40)
    before = _memory()
    backbone = weights.backbone(Recipe("backbone", folder, name))
    family: Any = backbone.network.family
    assert isinstance(family, BackboneFamily)
    x = torch.randn(1, 16, SIDE, SIDE)
    options = {"pooled_output": torch.randn(1, FLUX.pooled_width)}
    inputs = family.inputs(
        torch.randn(1, TOKENS, FLUX.text_width), options, "positive", Canvas(x, x), x.device, Discrete()
    )
    [answer] = family.forward(backbone.network.module, [Rows(x, 0.5, torch.full((1,), 0.5), inputs)])
    assert answer.isfinite().all()
    return weights.resident_bytes, _memory() - before, _memory("VmHWM:") - before


def _memory(line: str = "VmRSS:") -> int:
    """Return the bytes of the process's pages that are in memory; "VmHWM:" those that were at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(found.split()[1]) << 10 for found in lines if found.startswith(line))


def main() -> None:
    """Print a row a format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", choices=FORMATS, action="append")
    print("| format | file, MB | counted ÷ file | measured ÷ file | peak ÷ file |")
    print("|---|---|---|---|---|")
    for format in parser.parse_args().format or FORMATS:
        place, write = FORMATS[format]
        with TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as process:
            models = Path(folder)
            catalog_folder, _, name = place.partition("/")
            path = models / catalog_folder.replace("_gguf", "") / name
            path.parent.mkdir()
            write(path)
            size = path.stat().st_size
            figures = process.submit(taken, models, catalog_folder, name).result()
        print(f"| {format} | {size / 1e6:.0f} | {' | '.join(f'{figure / size:.2f}' for figure in figures)} |")


if __name__ == "__main__":
    main()
