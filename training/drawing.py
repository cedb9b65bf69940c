"""Draws pictures with a checkpoint as a workflow would: through the server's own nodes, engine and weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.execution.runtime import Runtime
from serve_app.models.weights.weights import Weights
from serve_app.nodes.conditioning.controlnet import control_net_apply_advanced, control_net_loader
from serve_app.nodes.conditioning.encode import clip_text_encode
from serve_app.nodes.latent.latents import vae_decode, vae_encode
from serve_app.nodes.loaders.lora import lora_loader_model_only
from serve_app.nodes.loaders.models import checkpoint_loader_simple
from serve_app.nodes.sampling.ksampler import ksampler
from serve_app.store.models.catalog import Catalog
from training.scenes import SIDE, Array

STEPS = 20
OUTLINE = "outline.safetensors"
"""The name of both the LoRA and the ControlNet that ship."""


@dataclass(frozen=True, slots=True, eq=False)
class Wish:
    """One picture that is asked for.

    lora: the strength of the LoRA that ships. hint: an outline (SIDE,SIDE,3) in 0…1 for the ControlNet that ships.
    """

    text: str
    seed: int
    cfg: float = 5.0
    negative: str = ""
    lora: float = 0.0
    hint: Array | None = None


@contextmanager
def runtime(models: Path, max_cells: int = 131072) -> Iterator[Runtime]:
    """Give the RUNTIME of a replica over a models directory, on the CPU, for as long as it is open."""
    engine = Engine(max_cells, HostTimeline())
    try:
        weights = Weights(Catalog(models), torch.device("cpu"), dtype="auto", vae_dtype="auto", budget_bytes=8 * 2**30)
        yield EngineRuntime(engine, weights).bind(lambda done, steps: None)
    finally:
        engine.close()


async def draw(runtime: Runtime, checkpoint: str, wish: Wish) -> Array:
    """Return the wished picture (SIDE,SIDE,3) in 0…1: 20 steps of euler on the normal schedule."""
    model, clip, vae = checkpoint_loader_simple(checkpoint)
    model = lora_loader_model_only(model, OUTLINE, wish.lora)
    positive = await clip_text_encode(text=wish.text, clip=clip, runtime=runtime)
    negative = await clip_text_encode(text=wish.negative, clip=clip, runtime=runtime)
    if wish.hint is not None:
        control_net = control_net_loader(OUTLINE)
        image = torch.from_numpy(wish.hint)[None]
        positive, negative = control_net_apply_advanced(
            positive, negative, control_net, image, strength=1.0, start_percent=0.0, end_percent=1.0
        )
    latent = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}
    latent = await ksampler(
        model=model,
        seed=wish.seed,
        steps=STEPS,
        cfg=wish.cfg,
        sampler_name="euler",
        scheduler="normal",
        positive=positive,
        negative=negative,
        latent_image=latent,
        runtime=runtime,
    )
    images = await vae_decode(vae, latent, runtime)
    picture: Array = images[0].numpy()
    return picture


def draw_all(models: Path, checkpoint: str, wishes: Sequence[Wish]) -> list[Array]:
    """Return the wished pictures in order, drawn together."""

    async def together(runtime: Runtime) -> list[Array]:
        return list(await asyncio.gather(*(draw(runtime, checkpoint, wish) for wish in wishes)))

    with runtime(models) as opened:
        return asyncio.run(together(opened))


def through_vae(models: Path, checkpoint: str, pictures: Sequence[Array]) -> list[Array]:
    """Return pictures encoded to latents and decoded again, as VAEEncode and VAEDecode do it."""

    async def one(runtime: Runtime, picture: Array) -> Array:
        _, _, vae = checkpoint_loader_simple(checkpoint)
        latent = await vae_encode(pixels=torch.from_numpy(picture)[None], vae=vae, runtime=runtime)
        images = await vae_decode(samples=latent, vae=vae, runtime=runtime)
        decoded: Array = images[0].numpy()
        return decoded

    async def together(runtime: Runtime) -> list[Array]:
        return list(await asyncio.gather(*(one(runtime, picture) for picture in pictures)))

    with runtime(models) as opened:
        return asyncio.run(together(opened))
