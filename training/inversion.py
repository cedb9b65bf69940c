"""Trains an embedding for the tiny checkpoint: vectors that stand for one scene in place of words, all else frozen.

    python -m training.inversion CHECKPOINT.safetensors EMBEDDING.safetensors

Source: Gal et al. 2022, arXiv:2208.01618.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file

from serve_app.models.backbone import SD1_LATENT_SCALE
from serve_app.models.checkpoint import Checkpoint
from serve_app.models.families import TextArchitecture
from serve_app.models.text_encoder import TextEncoder
from serve_app.sampling.sigmas import NoiseLevels
from training.autoencoder import to_pixels
from training.diffusion import noise_loss
from training.parts import TEXT
from training.scenes import Scene, Thing, render

FLAG = Scene((Thing("star", "yellow", "large", "middle"),), "red")
"""What the embedding comes to mean."""

NAME = "flag"
TEXTS = (f"embedding:{NAME}", f"a embedding:{NAME}", f"the embedding:{NAME}", f"picture of embedding:{NAME}")
VECTORS = 4
STEPS = 300
BATCH = 16
RATE = 0.02


def train(checkpoint: Path) -> torch.Tensor:
    """Return the vectors (VECTORS, width)."""
    file = Checkpoint(checkpoint)
    cpu = torch.device("cpu")
    _, unet = file.load("backbone", cpu, torch.float32)
    vae: Any
    _, vae = file.load("vae", cpu, torch.float32)
    architecture, text = file.load("clip", cpu, torch.float32)
    assert isinstance(architecture, TextArchitecture)
    drawn = torch.Generator().manual_seed(5)
    vectors = torch.nn.Parameter(0.02 * torch.randn(VECTORS, TEXT.width, generator=drawn))
    encoder = TextEncoder(architecture, text, lambda name, width: vectors)
    optimiser = torch.optim.Adam([vectors], lr=RATE)
    levels = NoiseLevels()
    random = Random(NAME)
    with torch.no_grad():
        pixels = to_pixels([render(FLAG, random) for _ in range(64)])
        latents = torch.cat([vae.encode(part, return_dict=False)[0].mode() for part in torch.split(pixels, 16)])
    latents = latents * SD1_LATENT_SCALE
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        texts = [random.choice(TEXTS) for _ in range(BATCH)]
        context = torch.cat([cond for ((cond, _),) in encoder.encode(texts)])
        loss = noise_loss(unet, levels, latents[random.sample(range(64), BATCH)], context, step)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    return vectors.detach()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("embedding", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    save_file({"emb_params": train(arguments.checkpoint).half()}, str(arguments.embedding))
