"""Leader: rank 0's side of forwards that several ranks compute.

It alone has an engine. It divides a forward's rows (`division`), prepares the inputs of each part as it would its own,
ControlNets' outputs among them, and sends them; it computes the first part itself and takes in the outputs of the
others. So noise, guidance, samplers and everything else of a run know of one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from serve_app.errors import ModelFileError, NodeError, RankLostError
from serve_app.models.batch_inputs import is_batched, map_rows
from serve_app.models.families.family import BackboneFamily, Family, Rows, VaeFamily
from serve_app.models.families.shared.one_call import OneCall
from serve_app.models.forward import CapturableCall, Inputs
from serve_app.models.kernels.attention import uninterrupted
from serve_app.models.ranks.division import Parallel, Part, degrees, divide, repeated
from serve_app.models.ranks.group import RankGroup, SentBytes
from serve_app.models.ranks.meeting import KINDS
from serve_app.models.ranks.orders import Failure, PartOrder, TensorShape, outline, packed, shapes_of
from serve_app.models.ranks.sharding import sharded_over
from serve_app.models.ranks.vaes import VaeLeader
from serve_app.models.vae import Vae
from serve_app.recipe.recipe import Recipe

if TYPE_CHECKING:
    from serve_app.models.network import LoadedNetwork


class Leader:
    """Has forwards computed by a group of ranks. parallel: how they are divided.

    shards_weights: whether backbones' weights are sharded over them; "auto": those that do not fit one device.

    Forwards are asked for by one thread, loads by one at a time. Errors: RankLostError once a rank is lost.
    """

    def __init__(
        self, group: RankGroup, parallel: Parallel = "auto", shards_weights: bool | Literal["auto"] = False
    ) -> None:
        self.group = group
        self.shards_weights = shards_weights
        self._parallel: Parallel = parallel
        self._vaes = VaeLeader(group)

    @property
    def size(self) -> int:
        """The number of ranks, this one among them."""
        return self.group.size

    @property
    def other_hosts(self) -> tuple[str, ...]:
        """The names of the hosts of other ranks that are not this one's."""
        return tuple(sorted({*self.group.hosts} - {self.group.hosts[self.group.rank]}))

    @property
    def sent(self) -> SentBytes:
        """What this rank has sent to others."""
        return self.group.sent

    def close(self) -> None:
        """Let the other ranks end."""
        for kind in KINDS:
            self.group.order(kind, None)
        self.group.close()

    @contextmanager
    def loading(self, recipe: Recipe) -> Iterator[None]:
        """Have all ranks load a model while this one loads it inside. Errors: ModelFileError of another rank."""
        self.group.order("loads", recipe)
        failed: list[str] = []
        try:
            yield
        finally:
            outcomes = {rank: self.group.hear("loads", rank) for rank in range(1, self.size)}
            failed = [f"rank {rank}: {outcome}" for rank, outcome in outcomes.items() if outcome is not None]
        if failed:
            raise ModelFileError(f"'{recipe.name}' is not loaded on every device: {'; '.join(failed)}")

    def check(self, family: BackboneFamily) -> None:
        """Errors: ModelFileError for a network whose heads these ranks cannot divide, where they shall."""
        heads = family.sharded_heads
        if self._parallel == "ulysses" and heads is not None and degrees(self.size, heads, "ulysses") == [1]:
            able = ", ".join(str(size) for size in range(2, heads + 1) if heads % size == 0)
            raise ModelFileError(
                f"this {family.title} has {heads} attention heads, which devices_per_replica {self.size} does not "
                f"divide; with `parallel: ulysses` allowed are {able}, and `parallel: auto` takes any"
            )

    def shares(self, family: Family) -> bool:
        """Whether the ranks compute with a VAE: each with strips of its images."""
        return isinstance(family, VaeFamily) and family.strips and self._parallel != "rows" and self.size > 1

    def vae(self, recipe: Recipe, vae: Vae) -> Vae:
        """Return a VAE that is loaded on all ranks as one that they compute with, if they share it."""
        if not self.shares(vae.family):
            return vae
        return vae.with_ranks(partial(self._vaes.pieces, recipe, vae.family, vae.network))

    def computes(self, family: BackboneFamily, rows: Sequence[Rows]) -> bool:
        """Whether the ranks can compute these rows: nothing but inputs, weights and plain patches makes their output.

        Others, such as those of strict jobs or with functions of node packs, are computed by this rank alone, or as
        `repeated` where weights are sharded.
        """
        known = all(row.recipe is not None for row in rows)
        return known and isinstance(family, OneCall) and all(map(family.is_steady, rows))

    def answer(self, network: LoadedNetwork, rows: Sequence[Rows]) -> list[Tensor]:
        """Return the network's output for each of the rows, as `LoadedNetwork.answer`."""
        units = [_units(row) for row in rows]
        single = [unit for of_row in units for unit in of_row]
        parts = divide(len(single), self.size, network.family.sharded_heads, self._parallel)
        if network.shards is not None:
            parts = repeated(parts, self.size)
        outputs = iter(self._outputs(network, [(part, single[part.rows.start : part.rows.stop]) for part in parts]))
        return [torch.cat([next(outputs) for _ in of_row]) if len(of_row) > 1 else next(outputs) for of_row in units]

    def repeated(self, network: LoadedNetwork, rows: Sequence[Rows]) -> list[Tensor]:
        """Return the network's output for rows that one rank computes, as of strict jobs, with weights that all have.

        All compute the same, as they gather the weights together. Errors: NodeError for rows that only this rank could
        compute, for which `Needs.fitted` shards no weights.
        """
        if not self.computes(network.family, [replace(row, exclusive=False) for row in rows]):
            raise NodeError(
                f"the weights of {network.family.title} are sharded over the {self.size} devices of this replica, and "
                "what changes its layers here needs them on one; leave `shard_weights` out for the pool"
            )
        count = sum(row.count for row in rows)
        parts = repeated([Part(range(count), 0, 1)], self.size)
        outputs = self._outputs(network, [(part, rows) for part in parts])
        return outputs[: len(rows)]

    def _outputs(self, network: LoadedNetwork, parts: Sequence[tuple[Part, Sequence[Rows]]]) -> list[Tensor]:
        """Return the output for each row of each part."""
        (first, own), *others = parts
        # Until all is prepared nothing is sent, so an error until then is this forward's alone.
        inputs = [_inputs(network, rows) for _, rows in others]
        with network.prepared(own) as call:
            assert call is not None
            blocks: tuple[int, ...] = ()
            if network.shards is not None:
                blocks = network.shards.learnt
                network.shards.follow(blocks)
            self._order(parts, [call.inputs, *inputs], blocks)
            try:
                made = [self._run(network, call, first.degree)]
            except RankLostError:
                raise
            except BaseException:
                # The others do not know of it, and what they send must not be taken for the next forward's.
                self._received([part for part, _ in others])
                raise
        made += self._received([part for part, _ in others])
        return [
            of_row
            for output, (_, rows) in zip(made, parts, strict=True)
            for of_row in network.family.split_output(output, rows)
        ]

    def _order(
        self, parts: Sequence[tuple[Part, Sequence[Rows]]], inputs: Sequence[Inputs], blocks: tuple[int, ...]
    ) -> None:
        """Order a forward's parts, and send each its inputs."""
        orders = [
            PartOrder(part, tuple(map(outline, rows)), shapes_of(given), blocks)
            for (part, rows), given in zip(parts, inputs, strict=True)
        ]
        self._vaes.forget()
        # From here on the others wait for what is sent: cancelled jobs do not end it (`engine.stopping`).
        with torch._C.DisableTorchFunction():
            self.group.order("forwards", orders)
            for (part, _), given in zip(parts, inputs, strict=True):
                if receivers := [rank for rank in part.ranks if rank != self.group.rank]:
                    buffer = packed(given)
                    for rank in receivers:
                        self.group.send(buffer, rank)

    def _run(self, network: LoadedNetwork, call: CapturableCall, degree: int) -> Tensor:
        """Return the output of this rank's part."""
        if degree == 1 and network.shards is None:
            return network.run(call)
        try:
            # Those that shard its tokens or weights cannot know that nobody waits for it any more: it is not stopped.
            with uninterrupted(network.family.dispatches), sharded_over(self.group.sequence(degree)):
                return network.run(replace(call, variant=None))
        except RankLostError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise RankLostError(f"rank 0 failed in a forward of several ranks, which wait for it: {reason}") from None

    def _received(self, parts: Sequence[Part]) -> list[Tensor]:
        """Return the outputs of parts. Errors: RuntimeError for one that failed, or its subclass for want of memory."""
        reports = {part.first_rank: self.group.hear("forwards", part.first_rank) for part in parts}
        received = [
            self.group.receive(report.shape, report.dtype, rank)
            for rank, report in reports.items()
            if isinstance(report, TensorShape)
        ]
        for rank, report in reports.items():
            if isinstance(report, Failure):
                kind = torch.OutOfMemoryError if report.out_of_memory else RuntimeError
                raise kind(f"rank {rank}: {report.reason}")
        return received


def _inputs(network: LoadedNetwork, rows: Sequence[Rows]) -> Inputs:
    """Return the input tensors of rows' call, prepared with the rows' LoRAs."""
    with network.prepared(rows) as call:
        assert call is not None
        return call.inputs


def _units(rows: Rows) -> list[Rows]:
    """Return each of the rows alone, or all of them where their inputs cannot be taken apart."""
    if rows.count == 1 or not is_batched(rows.inputs, rows.count):
        return [rows]

    def one(number: int) -> Rows:
        def only(tensor: Tensor) -> Tensor:
            return tensor[number : number + 1]

        return replace(rows, x=only(rows.x), timestep=only(rows.timestep), inputs=map_rows(rows.inputs, only))

    return [one(number) for number in range(rows.count)]
