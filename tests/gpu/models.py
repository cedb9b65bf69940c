"""Networks for a GPU, of random weights: speed and memory depend on sizes alone, so that no model file is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from serve_app.models.backbone import RecipeBackbone
from serve_app.models.families import AutoencoderKL, ClipText, Sd, Sdxl
from serve_app.models.families.family import BackboneFamily, Family, VaeFamily
from serve_app.models.families.unet.sdxl import SdxlText
from serve_app.models.forward import Replays
from serve_app.models.kernels.packing import move_to, upload
from serve_app.models.network import LoadedNetwork
from serve_app.models.text_encoder import Clip
from serve_app.models.tokenizers.lexicon import Lexicon
from serve_app.models.vae import Vae
from serve_app.models.weights.host_weights import HostWeights
from serve_app.models.weights.streaming import Streaming
from serve_app.models.weights.upload import Ring
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas, Piece
from serve_app.sampling.request import SamplingRequest
from serve_app.store.models.catalog import Catalog
from tests.unit.engine.mixes import request

TOKENS = 77
SIZES = 6 * 256
"""How wide SDXL's embedded sizes are beside its pooled text."""


@dataclass(frozen=True)
class Model:
    """A backbone and what is asked of it. side: of its images, in pixels; steps: a job has so many."""

    name: str
    family: BackboneFamily
    text: ClipText | SdxlText
    context: int
    pooled: int
    side: int
    steps: int

    def backbone(self, device: torch.device, dtype: torch.dtype) -> RecipeBackbone:
        """Return it with random weights, drawn on the device."""
        return self.of(random_weights(self.family, device, dtype))

    def of(self, module: nn.Module, replays: Replays | None = None) -> RecipeBackbone:
        """Return it with a network's weights. replays: as `LoadedNetwork`."""
        return RecipeBackbone(LoadedNetwork(self.name, self.family, module, Discrete(), replays))

    def clip(self, device: torch.device) -> Clip:
        """Return its text encoder with random weights, in single precision as texts are computed."""
        if isinstance(self.text, ClipText):
            network: Any = random_weights(self.text, device, torch.float32)
        else:
            network = {name: random_weights(getattr(self.text, name), device, torch.float32) for name in "lg"}
        return Clip(self.text.encoder(network, Lexicon(Catalog(Path()))))

    def conditioning(self, seed: int, tokens: int = TOKENS) -> list[Any]:
        """Return a text's entry, of random numbers."""
        generator = torch.Generator().manual_seed(seed)
        options = {"pooled_output": torch.randn(1, self.pooled, generator=generator)} if self.pooled else {}
        return [(torch.randn(1, tokens, self.context, generator=generator), options)]

    def request(self, seed: int, sampler: str = "euler", steps: int | None = None, **texts: Any) -> SamplingRequest:
        """Return a job with a positive and a negative, so of two rows a step. texts: these, if not random ones."""
        cells = self.side // 8
        return request(
            shape=(1, 4, cells, cells),
            seed=seed,
            sampler=sampler,
            steps=steps or self.steps,
            **texts or {"positive": self.conditioning(2 * seed), "negative": self.conditioning(2 * seed + 1)},
        )

    def pieces(self, backbone: RecipeBackbone, rows: int, tokens: Sequence[int] = (TOKENS,)) -> list[Piece]:
        """Return so many pieces of a row each. tokens: of their texts, in turn."""
        cells = self.side // 8
        found = []
        for row in range(rows):
            x = torch.randn(1, 4, cells, cells, generator=torch.Generator().manual_seed(row)).to(backbone.device)
            [(cond, options)] = self.conditioning(row, tokens[row % len(tokens)])
            inputs = backbone.inputs(cond, options, "positive", Canvas(x, x))
            found.append(Piece(backbone, x, 3.0 + row / 10, inputs))
        return found


CLIP_L = ClipText(layers=12, width=768, hidden_width=3072, positions=77)
CLIP_G = ClipText(layers=32, width=1280, hidden_width=5120, positions=77, projection=1280, kind="g")
SMALL_CLIP = ClipText(layers=2, width=64, hidden_width=256, positions=77)
SMALL_PAIR = SdxlText(
    ClipText(layers=2, width=64, hidden_width=96, positions=77, projection=64),
    ClipText(layers=2, width=64, hidden_width=96, positions=77, projection=64, kind="g"),
)

FULL = (
    Model("SD 1.5", Sd((320, 640, 1280, 1280), (2, 2, 2, 2), (1, 1, 1, 0), 1, 768), CLIP_L, 768, 0, 512, 20),
    Model(
        "SDXL",
        Sdxl((320, 640, 1280), (2, 2, 2), (0, 2, 10), 10, 2048, linear=True, vector_dim=1280 + SIZES),
        SdxlText(CLIP_L, CLIP_G),
        2048,
        1280,
        1024,
        20,
    ),
)
"""The networks that are measured."""

SMALL = (
    Model("SD 1.5", Sd((32, 64), (1, 1), (0, 1), 1, 64), SMALL_CLIP, 64, 0, 64, 3),
    Model(
        "SDXL",
        Sdxl((32, 64), (1, 1), (0, 1), 1, 128, linear=True, vector_dim=64 + SIZES),
        SMALL_PAIR,
        *(128, 64, 64, 3),
    ),
)
"""Networks that show on any machine that what measures them works."""

FULL_VAE: VaeFamily = AutoencoderKL((128, 256, 512, 512), 2, 4, 3, quantized=True)
SMALL_VAE: VaeFamily = AutoencoderKL((32, 32, 64, 64), 1, 4, 3, quantized=True)


def vae(family: VaeFamily, device: torch.device, dtype: torch.dtype) -> Vae:
    """Return an autoencoder of random weights."""
    return Vae(family, random_weights(family, device, dtype))


def streamed(module: nn.Module, device: torch.device, dtype: torch.dtype, share: float) -> Streaming:
    """Have a network that is on the CPU stream to a GPU, of which it takes a share of its bytes, or little more."""
    room_bytes = int(share * sum(tensor.numel() for tensor in module.parameters()) * dtype.itemsize)
    streaming = HostWeights(device, 2**34).stream("backbone", room_bytes, module, dtype, "a network")
    upload(streaming.resident, dtype, Ring(device))
    streaming.allocate_slots()
    return streaming


def random_weights(family: Family, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a family's network with weights that keep what goes through it about as large as it is.

    They are there for every stream.
    """
    torch.manual_seed(1)
    # Tables of positions and such, which are no parameters, are as the family makes them.
    with device:
        module = family.build().eval().requires_grad_(False)
    for parameter in module.parameters():
        drawn = torch.randn(parameter.shape, device=device)
        parameter.copy_(1 + 0.05 * drawn if parameter.ndim == 1 else drawn / max(1, parameter[0].numel()) ** 0.5)
    move_to(module, device, dtype)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return module
