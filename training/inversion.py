"""Trains an embedding for the tiny checkpoint: vectors that stand for one scene in place of words, all else frozen.

    python -m training.inversion CHECKPOINT.safetensors EMBEDDING.safetensors

Source: Gal et al. 2022, arXiv:2208.01618.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file

from training.diffusion import noise_loss
from training.frozen import Frozen
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
    drawn = torch.Generator().manual_seed(5)
    vectors = torch.nn.Parameter(0.02 * torch.randn(VECTORS, TEXT.width, generator=drawn))
    frozen = Frozen(checkpoint, lambda name, width, kind: vectors)
    optimiser = torch.optim.Adam([vectors], lr=RATE)
    random = Random(NAME)
    latents = frozen.latents([render(FLAG, random) for _ in range(64)])
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        texts = [random.choice(TEXTS) for _ in range(BATCH)]
        chosen = random.sample(range(64), BATCH)
        loss = noise_loss(frozen.unet, frozen.levels, latents[chosen], frozen.contexts(texts), step)
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
