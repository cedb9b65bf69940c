"""Trains a ControlNet for the tiny checkpoint that follows drawn outlines. All of the checkpoint stays frozen.

    python -m training.control CHECKPOINT.safetensors OUTLINE.safetensors

Its encoder begins as the backbone's, without the attention of its levels: captions say colours and shapes, the hint
says where. Captions here leave out place and size, so the hint alone tells them. The file is in the first published
layout; weights are in fp8 (e4m3), towards which the last third of the training moves them.
Source: Zhang et al. 2023, arXiv:2302.05543.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from serve_app.models.families.unet.unet import HEADS, NORM_GROUPS
from serve_app.models.files.layout import reverse, translate
from training.diffusion import noise_loss
from training.frozen import Frozen
from training.parts import UNET
from training.scenes import Scene, draw_scene, outline, render

SCENES = 3000
STEPS = 1000
BATCH = 16
RATE = 1e-3
ENCODER = replace(UNET, depths=(0, 0, 0))


class InFp8(nn.Module):
    """Rounds a weight to e4m3 on the way forward and hands its gradient through."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (weight.to(torch.float8_e4m3fn).float() - weight).detach()


def train(checkpoint: Path) -> dict[str, Tensor]:
    """Return the ControlNet's tensors under the published names."""
    torch.manual_seed(7)
    frozen = Frozen(checkpoint)
    network = _begun(frozen.unet.state_dict())
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.0)
    scenes = [draw_scene(Random(f"controlled {i}")) for i in range(SCENES)]
    latents = frozen.latents([render(s, Random(f"jitter {i}")) for i, s in enumerate(scenes)])
    hints = torch.from_numpy(np.stack([outline(s, Random(f"jitter {i}"))[..., 0] for i, s in enumerate(scenes)]))
    for step in range(STEPS):
        if step == STEPS * 2 // 3:
            for module in list(network.modules()):
                if isinstance(module, nn.Conv2d | nn.Linear):
                    parametrize.register_parametrization(module, "weight", InFp8())
        optimiser.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 50, (STEPS - step) / (0.5 * STEPS))
        random = Random(f"control {step}")
        chosen = random.sample(range(SCENES), BATCH)
        captions = ["" if random.random() < 0.1 else placeless(scenes[i], random) for i in chosen]
        hint = hints[chosen][:, None].expand(-1, 3, -1, -1)
        loss = _loss(frozen, network, latents[chosen], frozen.contexts(captions), hint, step)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    return published(network.state_dict())


def placeless(scene: Scene, random: Random) -> str:
    """Describe a scene without saying where its things are or how large."""
    things = [f"a {thing.colour} {thing.shape}" for thing in scene.things]
    random.shuffle(things)
    return f"{' and '.join(things)}, {scene.background} background"


def published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a ControlNetModel's tensors under the names of the first published layout, weights in fp8."""
    names = reverse(ENCODER.table())
    hint = {"conv_in": 0, **{f"blocks.{i}": 2 * i + 2 for i in range(6)}, "conv_out": 14}
    names |= {f"controlnet_cond_embedding.{ours}": f"input_hint_block.{i}" for ours, i in hint.items()}
    names |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(6)}
    names |= {"controlnet_mid_block": "middle_block_out.0"}
    tensors: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        theirs = translate(ours, names)
        assert theirs is not None, f"the layout has no place for '{ours}'"
        kept = torch.float8_e4m3fn if tensor.ndim > 1 else torch.float16
        tensors[f"control_model.{theirs}"] = tensor.detach().to(kept).contiguous()
    return tensors


def _begun(backbone: Mapping[str, Tensor]) -> Any:
    network: Any = ControlNetModel(
        in_channels=UNET.latent_channels,
        down_block_types=("DownBlock2D",) * 3,
        block_out_channels=UNET.channels,
        layers_per_block=1,
        cross_attention_dim=UNET.context_dim,
        attention_head_dim=HEADS,
        norm_num_groups=NORM_GROUPS,
    )
    network.load_state_dict({n: t for n, t in backbone.items() if n in network.state_dict()}, strict=False)
    return network.train()


def _loss(frozen: Frozen, network: Any, latents: Tensor, context: Tensor, hint: Tensor, seed: int) -> Tensor:
    """Return the loss of `diffusion.noise_loss` with the hint's answers added inside the backbone."""

    def controlled(x: Tensor, timestep: Tensor, text: Tensor, **options: Any) -> Any:
        down, middle = network(x, timestep, text, hint, return_dict=False)
        return frozen.unet(
            x,
            timestep,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **options,
        )

    return noise_loss(controlled, frozen.levels, latents, context, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("control_net", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    save_file(train(arguments.checkpoint), str(arguments.control_net))
