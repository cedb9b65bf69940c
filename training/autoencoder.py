"""Trains the VAE on rendered scenes: first at half size, which is four times cheaper, then at full size,
at last with its encoder fixed.

    python -m training.autoencoder DIRECTORY     goes on where DIRECTORY/autoencoder.pt ends

Loss: L1 of pixels, those of things weighing more, and of the differences between neighbours, and a weak pull of the
latents towards unit size. The decoder sees latents with noise, so that it forgives what a sampler leaves. There is no
adversary and no perceptual network. At the end the first and last 1×1 convolutions take up a shift and scale for each
latent channel, so that latents × 0.18215 have zero mean and unit variance, as the SD 1.x layout has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from math import cos, log, pi
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from serve_app.sampling.latents import latent_formats
from training.parts import VAE, averaged, load_state, record, save_state, untrained
from training.scenes import FRAME, SIDE, draw_scene, render

PHASES = ((0.5, 800, 16, True), (1.0, 600, 8, True), (1.0, 1300, 8, False))
"""(scale of the pictures, steps, pictures a step, whether the encoder is trained), in order."""

ENCODED_FROM = sum(steps for _, steps, _, trained in PHASES if trained)
"""The step from which latents stay what they are, so that the backbone can be trained while the decoder goes on."""

RATE = 1.5e-3
LATENT_NOISE = 0.1
THING_WEIGHT = 4.0
"""How much more a pixel of a thing counts than one of the background, of which there are many more."""

SAVE_EVERY = 100


def train(directory: Path) -> None:
    """Train to the end of the phases, saving as it goes; a state that has ended is left as it is."""
    vae = untrained(VAE, seed=1)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    average = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    begun = 0
    path = directory / "autoencoder.pt"
    if (state := load_state(path)) is not None:
        begun, average = state["step"], state["average"]
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
    total = sum(steps for _, steps, *_ in PHASES)
    for step in range(begun, total):
        scale, batch = _phase(step)
        if step == ENCODED_FROM:
            # What is kept of the encoder is its average; from here on the decoder learns from that.
            vae.load_state_dict(average)
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(step < ENCODED_FROM)
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, total)
        loss, pixels = _losses(vae, _pictures(step, scale, batch), step)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        averaged(average, vae, min(0.99, step / (step + 10)))
        if step % 20 == 0:
            record(directory / "autoencoder.jsonl", step=step, loss=loss.item(), l1=pixels.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == total:
            state = {"step": step + 1, "vae": vae.state_dict(), "average": average}
            save_state(path, {**state, "optimiser": optimiser.state_dict()})


def normalised(state: Mapping[str, Tensor], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """Return the VAE's state with each latent channel shifted and scaled to the layout's zero mean and variance.

    mean, std: (4,), of the latents that the state makes of its pictures.
    """
    assert isinstance(latent_formats.SD.scale, float)
    scale = 1 / (std * latent_formats.SD.scale)
    moments, post = state["quant_conv.weight"].clone(), state["post_quant_conv.weight"]
    biases = state["quant_conv.bias"].clone()
    moments[:4] *= scale[:, None, None, None]
    biases[:4] = (biases[:4] - mean) * scale
    # The spread is not trained; every latent gets that of the noise its decoder was trained with.
    moments[4:] = 0
    biases[4:] = 2 * (log(LATENT_NOISE) + scale.log())
    return {
        **state,
        "quant_conv.weight": moments,
        "quant_conv.bias": biases,
        "post_quant_conv.weight": post / scale[None, :, None, None],
        "post_quant_conv.bias": state["post_quant_conv.bias"] + post[:, :, 0, 0] @ mean,
    }


def to_pixels(pictures: Sequence[Any]) -> Tensor:
    """Return pictures (H,W,3) in 0…1 as pixels (B,3,H,W) in −1…1."""
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1) * 2 - 1


def _phase(step: int) -> tuple[float, int]:
    for scale, steps, batch, _ in PHASES:
        if step < steps:
            return scale, batch
        step -= steps
    raise ValueError(f"step {step} is past the last phase")


def _rate(step: int, total: int) -> float:
    return RATE * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * (1 + cos(pi * step / total)) / 2)


def _pictures(step: int, scale: float, batch: int) -> Tensor:
    random = Random(f"autoencoder {step}")
    return to_pixels([render(draw_scene(random), random, scale) for _ in range(batch)])


def _losses(vae: Any, pixels: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the loss and its part from pixels alone."""
    noise = torch.Generator().manual_seed(step)
    latents = vae.encode(pixels, return_dict=False)[0].mean
    noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=noise)
    decoded = vae.decode(noisy, return_dict=False)[0]
    weight = 1 + THING_WEIGHT * _things(pixels)
    l1 = ((decoded - pixels).abs() * weight).mean()
    edges = sum(functional.l1_loss(decoded.diff(dim=axis), pixels.diff(dim=axis)) for axis in (2, 3))
    return l1 + edges + 1e-3 * latents.square().mean(), l1


def _things(pixels: Tensor) -> Tensor:
    """Return 1 where pixels (B,3,H,W) are neither the frame's nor as in the card's corner, else 0, (B,1,H,W)."""
    edge = pixels.shape[-1] * FRAME // SIDE + 1
    card = pixels[..., edge:-edge, edge:-edge]
    differs = (card - card[..., :1, :1]).abs().amax(1, keepdim=True) > 0.2
    return functional.pad(differs.float(), (edge,) * 4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where states and logs are kept")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    train(arguments.directory)
