"""Trains the backbone and the text encoder together on the latents of rendered scenes, and writes the checkpoint.

    python -m training.diffusion DIRECTORY [--steps N]     goes on where DIRECTORY/diffusion.pt ends

The backbone predicts the noise on SD 1.x's levels, a timestep drawn evenly. Errors weigh 1 + sigma², so that an error
of the denoised latents counts alike at every level (that is the loss of a v-prediction: Salimans & Ho 2022,
arXiv:2202.00512). One caption in ten is empty, for classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

The noise loss alone does not teach the text encoder to tell places apart: what "left" and "right" change in a noisy
picture is little, and nothing until the backbone reads them. So the encoder also learns to say, from the row of a
text's end, which of the vocabulary's words and pairs the text holds.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from serve_app.models.families.text.clip import TextEncoder
from serve_app.models.tokenizers.clip import END, START, token_ids
from serve_app.sampling.denoiser import EPS
from serve_app.sampling.schedules.levels import TableLevels
from training.autoencoder import ENCODED_FROM, normalised, to_pixels
from training.parts import (
    TEXT,
    UNET,
    VAE,
    averaged,
    load_state,
    record,
    save_state,
    untrained,
    write_checkpoint,
)
from training.scenes import COLOURS, PHRASES, PLACES, SHAPES, SIZES, Scene, caption, draw_scene, render

SCENES = 5000
BATCH = 32
RATE = 1e-3
EMPTY = 0.1
MAX_WEIGHT = 100.0
"""Above sigma 10 errors count no more than there."""

WORDS = 0.1
"""How much the words that the encoder tells count beside the noise."""

SAID = (
    *(PHRASES[place] for place in PLACES),
    *SIZES,
    *(f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)),
    *(f"{colour} background" for colour in COLOURS),
)
"""What a caption may hold and its encoding is to tell."""

SAVE_EVERY = 100


def train(directory: Path, steps: int) -> None:
    """Train up to `steps`, saving as it goes. The last quarter's rate falls to zero; until then `steps` may change."""
    latents, mean, std = encoded_scenes(directory)
    scenes = [scene(i)[0] for i in range(SCENES)]
    unet = untrained(UNET, seed=2).to(memory_format=torch.channels_last)
    text = untrained(TEXT, seed=3)
    draw_words(text, scenes)
    encoder = TextEncoder(TEXT, text, lambda name, width, kind: None)
    torch.manual_seed(8)
    said = torch.nn.Linear(TEXT.width, len(SAID))
    parts = {"unet": unet, "text": text, "said": said}
    parameters = [p for part in parts.values() for p in part.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    averages = {name: {n: t.clone() for n, t in part.state_dict().items()} for name, part in parts.items()}
    begun = 0
    path = directory / "diffusion.pt"
    if (state := load_state(path)) is not None:
        begun, averages = state["step"], state["averages"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
        optimiser.load_state_dict(state["optimiser"])
    levels = TableLevels()
    mean_loss = 0.0
    for step in range(begun, steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 100, (steps - step) / (0.25 * steps))
        random = Random(f"diffusion {step}")
        chosen = random.sample(range(SCENES), BATCH)
        captions = ["" if random.random() < EMPTY else caption(scenes[i], random) for i in chosen]
        encoded = [entry for (entry,) in encoder.encode(captions)]
        context = torch.cat([cond for cond, _ in encoded])
        told = said(torch.cat([options["pooled_output"] for _, options in encoded]))
        words = torch.tensor([[float(words in text) for words in SAID] for text in captions])
        loss = noise_loss(unet, levels, latents[chosen].float(), context, step)
        loss = loss + WORDS * binary_cross_entropy_with_logits(told, words) * len(SAID)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        for name, part in parts.items():
            averaged(averages[name], part, min(0.998, step / (step + 10)))
        mean_loss = loss.item() if step == begun else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 20 == 0:
            record(directory / "diffusion.jsonl", step=step, loss=mean_loss)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            save_state(path, {**state, "step": step + 1, "averages": averages, "optimiser": optimiser.state_dict()})
            vae = normalised(finished_vae(directory), mean, std)
            write_checkpoint(directory / "tiny.safetensors", {UNET: averages["unet"], VAE: vae, TEXT: averages["text"]})


def scene(index: int) -> tuple[Scene, Random]:
    """Return a scene of the training set, and where its jitter comes from."""
    random = Random(f"scene {index}")
    return draw_scene(random), random


def encoded_scenes(directory: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return the training set's latents at zero mean and unit variance (SCENES,4,h,w) in fp16, and what these were."""
    path = directory / "latents.pt"
    if (found := load_state(path)) is None:
        vae = untrained(VAE, seed=1).eval()
        vae.load_state_dict(finished_vae(directory))
        rows = []
        with torch.inference_mode():
            for first in range(0, SCENES, 16):
                pictures = [render(*scene(i)) for i in range(first, min(first + 16, SCENES))]
                rows.append(vae.encode(to_pixels(pictures), return_dict=False)[0].mean)
        raw = torch.cat(rows)
        mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
        scaled = (raw - mean[:, None, None]) / std[:, None, None]
        found = {"latents": scaled.half(), "mean": mean, "std": std}
        save_state(path, found)
    return found["latents"], found["mean"], found["std"]


def finished_vae(directory: Path) -> dict[str, Tensor]:
    """Return the VAE's averaged state, whose encoder is final. Its decoder may still be in training."""
    state = load_state(directory / "autoencoder.pt")
    assert state is not None, f"{directory} holds no autoencoder.pt; run training.autoencoder first"
    assert state["step"] >= ENCODED_FROM, f"the encoder is in training until step {ENCODED_FROM}"
    average: dict[str, Tensor] = state["average"]
    return average


def draw_words(text: Any, scenes: list[Scene]) -> None:
    """Give the tokens that captions use rows of their own in the text encoder's table."""
    random = Random("words")
    used = sorted({START, END, *(token for s in scenes for token in token_ids(caption(s, random)))})
    rows = 0.02 * torch.randn(len(used), TEXT.width, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        text.embeddings.token_embedding.weight[used] = rows


def noise_loss(unet: Any, levels: TableLevels, latents: Tensor, context: Tensor, seed: int) -> Tensor:
    """Return the weighted squared error of the predicted noise, for one drawn timestep and noise each.

    latents: (B,4,h,w) scaled; context: (B,T,D).
    """
    drawn = torch.Generator().manual_seed(seed)
    timestep = torch.randint(len(levels.sigmas), (len(latents),), generator=drawn)
    noise = torch.randn(latents.shape, generator=drawn)
    sigma = levels.sigmas[timestep]
    x = latents + sigma[:, None, None, None] * noise
    c_in = torch.tensor([EPS.scaling(level).c_in for level in sigma.tolist()])
    scaled = (x * c_in[:, None, None, None]).contiguous(memory_format=torch.channels_last)
    eps = unet(scaled, timestep, context, return_dict=False)[0]
    errors = (eps - noise).square().mean((1, 2, 3))
    weighted: Tensor = errors * (1 + sigma.square().clamp(max=MAX_WEIGHT))
    return weighted.mean()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where states and logs are kept")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.directory, arguments.steps)
