"""Trains a LoRA for the tiny checkpoint: shapes as outlines instead of areas. All of the checkpoint stays frozen.

    python -m training.lora CHECKPOINT.safetensors OUTLINE.safetensors

Low-rank changes of every convolution and linear map inside the backbone's blocks, in the layout of kohya's sd-scripts.
Source: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training.diffusion import noise_loss
from training.frozen import Frozen
from training.scenes import caption, draw_scene, render

RANK = 8
SCENES = 1000
STEPS = 1500
BATCH = 16
RATE = 3e-3


class LowRank(nn.Module):
    """A frozen layer plus up(down(x)), which begins as zero."""

    def __init__(self, frozen: Any) -> None:
        super().__init__()
        self.frozen = frozen
        if isinstance(frozen, nn.Conv2d):
            of: dict[str, Any] = {name: getattr(frozen, name) for name in ("kernel_size", "stride", "padding")}
            self.down: Any = nn.Conv2d(frozen.in_channels, RANK, **of, bias=False)
            self.up: Any = nn.Conv2d(RANK, frozen.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(frozen.in_features, RANK, bias=False)
            self.up = nn.Linear(RANK, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.frozen(x) + self.up(self.down(x))
        return result


def train(checkpoint: Path) -> dict[str, Tensor]:
    """Return the LoRA's tensors in fp16 under kohya's names."""
    torch.manual_seed(6)
    frozen = Frozen(checkpoint)
    changed = _adapt(frozen.unet)
    parameters = [p for layer in changed.values() for p in (layer.down.weight, layer.up.weight)]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    randoms = [Random(f"outlined {i}") for i in range(SCENES)]
    scenes = [draw_scene(random) for random in randoms]
    latents = frozen.latents([render(s, r, outlined=True) for s, r in zip(scenes, randoms, strict=True)])
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 20, (STEPS - step) / (0.5 * STEPS))
        random = Random(f"lora {step}")
        chosen = random.sample(range(SCENES), BATCH)
        captions = ["" if random.random() < 0.1 else caption(scenes[i], random) for i in chosen]
        loss = noise_loss(frozen.unet, frozen.levels, latents[chosen], frozen.contexts(captions), step)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    tensors: dict[str, Tensor] = {}
    for name, layer in changed.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = layer.down.weight.detach().half().contiguous()
        tensors[f"{key}.lora_up.weight"] = layer.up.weight.detach().half().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(RANK)).half()
    return tensors


def _adapt(unet: Any) -> dict[str, LowRank]:
    """Put a low-rank change beside every convolution and linear map of the network's blocks."""
    changed: dict[str, LowRank] = {}
    for name, module in list(unet.named_modules()):
        for child_name, child in list(module.named_children()):
            path = f"{name}.{child_name}" if name else child_name
            if "block" in path and isinstance(child, nn.Conv2d | nn.Linear):
                changed[path] = LowRank(child)
                setattr(module, child_name, changed[path])
    return changed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("lora", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    save_file(train(arguments.checkpoint), str(arguments.lora))
