"""Follower: the loop of every rank but the first: load weights and compute its parts of forwards, until the end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from threading import Thread

import torch
from torch import Tensor

from serve_app.errors import RankLostError
from serve_app.models.backbone import RecipeBackbone
from serve_app.models.kernels.attention import uninterrupted
from serve_app.models.ranks.group import RankGroup
from serve_app.models.ranks.orders import Failure, PartOrder, TensorShape, VaeEnds, VaeOrder, VaeStep, unpacked
from serve_app.models.ranks.sharding import sharded_over
from serve_app.models.ranks.vaes import VaeFollower
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Sharded


class Follower:
    """Carries out rank 0's orders. weights: of this rank's device, within the budget of rank 0's.

    It holds a part of what rank 0 holds, and evicts by itself. An error in rows of its own is rank 0's to raise. One in
    a forward whose tokens or weights it shares ends it, and with it the replica, as the others wait for it.
    """

    def __init__(self, group: RankGroup, weights: Weights) -> None:
        self._group = group
        self._weights = weights
        self._vaes = VaeFollower(group, weights)

    def run(self) -> None:
        """Carry out orders until rank 0 closes. Errors: RankLostError once rank 0 is lost, and those of a forward."""
        loads = Thread(target=self._load, name="loads", daemon=True)
        loads.start()
        with torch.inference_mode():
            while (order := self._group.hear("forwards")) is not None:
                match order:
                    case VaeOrder() | VaeStep() | VaeEnds():
                        self._vaes.carry_out(order)
                    case _:
                        self._compute(order)
        loads.join()

    def _load(self) -> None:
        # Once rank 0 is lost, the other thread says so.
        with torch.no_grad(), suppress(RankLostError):
            while (recipe := self._group.hear("loads")) is not None:
                try:
                    self._weights.open(recipe).close()
                except Exception as error:
                    # Of whatever kind: rank 0 raises it for the job that needs the model.
                    self._group.say("loads", f"{type(error).__name__}: {error}")
                else:
                    self._group.say("loads", None)

    def _compute(self, orders: Sequence[PartOrder]) -> None:
        own = next((order for order in orders if self._group.rank in order.part.ranks), None)
        if own is None:
            return
        buffer = self._group.receive((own.nbytes,), torch.uint8, 0)
        reports = self._group.rank == own.part.first_rank
        try:
            output = self._output(own, buffer)
        except Exception as error:
            if own.part.degree > 1 or _shards_weights(own) or isinstance(error, RankLostError):
                raise
            self._group.say("forwards", Failure.of(error))
            return
        if reports:
            self._group.say("forwards", TensorShape(tuple(output.shape), output.dtype))
            self._group.send(output, 0)

    def _output(self, order: PartOrder, buffer: Tensor) -> Tensor:
        """Return a part's output."""
        with ExitStack() as stack:
            backbones: dict[Recipe | None, RecipeBackbone] = {}
            for recipe in dict.fromkeys(row.recipe for row in order.rows):
                assert recipe is not None
                hold = stack.enter_context(self._weights.open(recipe))
                backbones[recipe] = self._weights.backbone(recipe, hold)
            rows = [replace(row, loras=backbones[row.recipe].loras) for row in order.rows]
            network = backbones[order.rows[0].recipe].network
            if network.shards is not None:
                network.shards.follow(order.blocks)
            call = stack.enter_context(network.prepared(rows, unpacked(buffer, order.inputs)))
            assert call is not None
            sharded = order.part.degree > 1
            stack.enter_context(uninterrupted(network.family.dispatches))
            stack.enter_context(sharded_over(self._group.sequence(order.part.degree)))
            return network.run(replace(call, variant=None) if sharded or network.shards is not None else call)


def _shards_weights(order: PartOrder) -> bool:
    recipe = order.rows[0].recipe
    return recipe is not None and recipe.last(Sharded) is not None
