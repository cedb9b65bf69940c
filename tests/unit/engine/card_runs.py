"""Runs on the honest card: engines whose thread uses it, and what each forward of a run costs around its network."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.engine.engine import Engine
from serve_app.engine.trajectory import Trajectory
from serve_app.models.backbone import RecipeBackbone
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.families.unet.unet import UnetInputs, stack_contexts
from serve_app.models.network import LoadedNetwork
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas, Inputs, to_batch
from serve_app.sampling.latents.latent_formats import SD
from serve_app.sampling.request import Sampled, SamplingRequest
from serve_app.sampling.transfer import to_device
from tests.unit.engine.card import CARD, Card, Counts
from tests.unit.engine.card_order import CardTimeline
from tests.unit.engine.mixes import MAX_CELLS, WIDTH, TinyBackbone


class CardEngine(Engine):
    """An engine whose thread uses the card."""

    def __init__(self, card: Card, max_cells: int = MAX_CELLS) -> None:
        self._card = card
        super().__init__(max_cells, CardTimeline(card.order))

    def _loop(self) -> None:
        with self._card.used():
            super()._loop()


class _Few(nn.Module):
    """A network of few operations that reads its text."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.query = nn.Parameter(torch.randn(4, WIDTH, generator=generator) / 2, requires_grad=False)
        self.value = nn.Parameter(torch.randn(WIDTH, 4, generator=generator) / WIDTH, requires_grad=False)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        scores = (x.flatten(2).mean(dim=2) @ self.query)[:, None] @ context.mT
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        read = (scores.softmax(dim=2) @ context @ self.value)[:, 0]
        return torch.sin(x + read[:, :, None, None] + timestep.view(-1, 1, 1, 1) / 1000)


@dataclass(frozen=True, slots=True)
class Tiny(BackboneFamily):
    """A family whose networks take next to no time, so that what is around them shows."""

    title = "Tiny"
    latent_format = SD

    @classmethod
    def probe(cls, tensors: Any) -> Any:
        raise NotImplementedError

    def table(self, tensors: Any = None) -> Any:
        return {}

    def build(self) -> nn.Module:
        return _Few()

    def training(self, file: Any, names: Any) -> Any:
        return Discrete()

    def inputs(
        self, cond: Tensor, options: Any, role: str, canvas: Canvas, device: torch.device, trained_as: Any
    ) -> Inputs:
        return UnetInputs(to_batch(to_device(cond, device).float(), canvas.rows))

    def forward(self, network: Any, rows: Sequence[Rows]) -> list[Tensor]:
        context, mask = stack_contexts([r.inputs.context for r in rows])
        x, timestep = torch.cat([r.x for r in rows]), torch.cat([r.timestep for r in rows])
        return list(network(x, timestep, context, mask).split([r.count for r in rows]))


def tiny(key: Hashable = "tiny") -> RecipeBackbone:
    """Return a backbone of few operations on the CPU."""
    return RecipeBackbone(LoadedNetwork(key, Tiny(), _Few().eval(), Discrete()))


def on_card(card: Card, key: Hashable = "tiny") -> RecipeBackbone:
    """Return the same backbone on the card, whose counts of it are apart."""
    with card.used():
        module = card.settle(_Few().eval())
        card.watch(module)
        return RecipeBackbone(LoadedNetwork(key, Tiny(), module, Discrete()))


def tiny_on_card(card: Card, backbone: TinyBackbone) -> TinyBackbone:
    """Put one of the mixes' backbones on the card."""
    with card.used():
        backbone.device = CARD
        backbone.query, backbone.value = card.place(backbone.query), card.place(backbone.value)
    return backbone


def taken_together(engine: Engine, backbone: Any, requests: Sequence[SamplingRequest]) -> list[Sampled]:
    """Return what runs of one backbone give that all join before the first forward."""
    return ran_together(engine, [(backbone, request) for request in requests])


def ran_together(engine: Engine, jobs: Sequence[tuple[Any, SamplingRequest]]) -> list[Sampled]:
    """Return what runs give, each of its backbone, that all join before the first forward."""
    holding, go = Event(), Event()
    engine.call(lambda: (holding.set(), go.wait(30)))
    assert holding.wait(30)
    futures = [engine.submit(Trajectory(backbone, request)) for backbone, request in jobs]
    go.set()
    wait(futures, timeout=60)
    return [future.result() for future in futures]


class Forwards:
    """Takes the counts as each forward of a network begins."""

    def __init__(self, card: Card, module: nn.Module) -> None:
        self._card = card
        self._begun: list[Counts] = []
        module.register_forward_pre_hook(lambda *_: self._begun.append(card.counts.copy()))

    def steady(self) -> list[Counts]:
        """Return what was asked from one forward to the next, but for the first two; then begin anew."""
        between = [later.since(earlier) for earlier, later in zip(self._begun, self._begun[1:], strict=False)]
        self._begun = []
        return between[2:]


def most(forwards: Sequence[Counts], of: Callable[[Counts], int]) -> int:
    """Return the most of something that any forward has."""
    return max(map(of, forwards))
