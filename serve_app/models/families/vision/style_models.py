"""Style models: Flux.1 Redux, and the T2I-Adapter of style for SD 1.x.

Sources: Black Forest Labs 2024, FLUX.1 Redux; Mou et al. 2023, arXiv:2302.08453. The numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from serve_app.models.families.family import Located, StyleFamily
from serve_app.models.families.text.clip import open_clip_layer
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors

ADAPTER_HEADS = 8


@dataclass(frozen=True, slots=True)
class Redux(StyleFamily):
    """Flux.1's: each of SigLIP's states becomes a token. hidden_width: between its two layers; writes: of a token."""

    title = "Flux.1 Redux"
    dtypes = (torch.bfloat16, torch.float16)

    reads: int
    hidden_width: int
    writes: int

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        if "redux_down.weight" in files[0].shapes:
            hidden_width, reads = files[0].shape("redux_up.weight")
            yield Located(cls(reads, hidden_width, files[0].shape("redux_down.weight")[0]), files[0])

    def table(self, tensors: Tensors | None = None) -> Table:
        return {"redux_up": "redux_up", "redux_down": "redux_down"}

    def build(self) -> nn.Module:
        up, down = nn.Linear(self.reads, self.hidden_width), nn.Linear(self.hidden_width, self.writes)
        return nn.ModuleDict({"redux_up": up, "redux_down": down})

    def tokens(self, network: Any, states: Tensor) -> Tensor:
        made: Tensor = network["redux_down"](silu(network["redux_up"](states)))
        return made


@dataclass(frozen=True, slots=True)
class StyleAdapter(StyleFamily):
    """SD 1.x's: learnt tokens that attend to ViT-L's states. count: of them; writes: width of one."""

    title = "the style adapter of SD 1.x"

    reads: int
    hidden_width: int
    layers: int
    count: int
    writes: int

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        whole = files[0]
        if "style_embedding" not in whole.shapes:
            return
        _, count, width = whole.shape("style_embedding")
        hidden_width = whole.shape("transformer_layes.0.mlp.c_fc.weight")[0]
        writes = whole.shape("proj")[1]
        if width % ADAPTER_HEADS:
            raise whole.unsupported(f"has a style model {width} wide, not a multiple of {ADAPTER_HEADS}")
        yield Located(cls(width, hidden_width, whole.count("transformer_layes."), count, writes), whole)

    def table(self, tensors: Tensors | None = None) -> Table:
        table: dict[str, str | tuple[Place, ...]] = {name: name for name in ("ln_pre", "ln_post")}
        table |= {"style_embedding": "style_embedding", "proj": "proj"}
        for layer in range(self.layers):
            table |= dict(open_clip_layer(f"transformer_layes.{layer}", f"layers.{layer}", self.reads))
        return table

    def build(self) -> nn.Module:
        config = CLIPVisionConfig(
            hidden_size=self.reads,
            intermediate_size=self.hidden_width,
            num_attention_heads=ADAPTER_HEADS,
            hidden_act="quick_gelu",
            attn_implementation="sdpa",
        )
        network = nn.Module()
        network.style_embedding = nn.Parameter(torch.zeros(1, self.count, self.reads))
        network.ln_pre, network.ln_post = nn.LayerNorm(self.reads), nn.LayerNorm(self.reads)
        network.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(self.layers))
        network.proj = nn.Parameter(torch.zeros(self.reads, self.writes))
        return network

    def tokens(self, network: Any, states: Tensor) -> Tensor:
        learned = network.style_embedding.expand(len(states), -1, -1)
        x = network.ln_pre(torch.cat([states, learned], dim=1))
        for layer in network.layers:
            x = layer(x, None)
        made: Tensor = network.ln_post(x[:, -self.count :]) @ network.proj
        return made
