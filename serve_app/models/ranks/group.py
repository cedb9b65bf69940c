"""RankGroup: the processes that compute one replica's forwards, and what goes between them.

Rank 0 leads: it alone has the engine, and all others do what it says. Tensors go by NCCL between GPUs and by gloo
between CPUs, which authenticate nobody and carry numbers alone. Orders are pickled, so they go by the connections of
`meeting`. Once a rank has ended, whatever waits for it raises RankLostError. Nothing is mended then: ranks that are
left cannot know how far it came.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from multiprocessing import AuthenticationError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from serve_app.errors import RankLostError
from serve_app.models.ranks.meeting import MEET_S, Kind, Meeting, accepted, connected, listening, store, wait_for_all

# Before torch 2.13 it has its older name alone, which warns since.
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(slots=True)
class SentBytes:
    """Bytes that this rank has sent to others: in all-to-alls, in all-gathers, and to one rank at a time.

    weights: in all-gathers of blocks' weights.
    """

    exchanged: int = 0
    gathered: int = 0
    sent: int = 0
    weights: int = 0


class RankGroup:
    """The ranks of one replica, as each of them sees it. One a process, and one thread at a time uses its tensors.

    meeting: where they meet. timeout_s: how long one waits for another within a forward. Errors: RankLostError if the
    others do not come.
    """

    def __init__(self, meeting: Meeting, rank: int, size: int, device: torch.device, timeout_s: float) -> None:
        self.rank, self.size, self.device = rank, size, device
        self.sent = SentBytes()
        self.hosts: tuple[str, ...]
        """The name of each rank's host."""
        self._sequences: dict[int, SequenceGroup] = {}
        self.weights: WeightsGroup
        """This rank among all, for sharded weights."""
        with lost_ranks():
            if rank:
                self._meet(meeting, timeout_s)
                self._connections = connected(meeting, rank)
            else:
                # Before it meets the others, which connect as soon as they have met.
                with listening(meeting, size) as listener:
                    self._meet(meeting, timeout_s)
                    self._connections = accepted(listener, meeting, size)

    def _meet(self, meeting: Meeting, timeout_s: float) -> None:
        """Join torch's process group, and make those of ranks that share tokens."""
        met = store(meeting, self.rank, self.size)
        self.hosts = wait_for_all(met, self.rank, self.size)
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=met, rank=self.rank, world_size=self.size, timeout=timedelta(seconds=MEET_S)
        )
        # NCCL connects with the first collective: what is wrong shall be known now.
        dist.all_reduce(torch.zeros(1, device=self.device))
        for degree in range(2, self.size + 1):
            for first in range(0, self.size, degree) if self.size % degree == 0 else ():
                ranks = list(range(first, first + degree))
                # Every rank makes every group, in one order, as torch.distributed demands.
                group = dist.new_group(ranks, timeout=timedelta(seconds=timeout_s))
                if isinstance(group, dist.ProcessGroup):  # of which this rank is a member
                    self._sequences[degree] = SequenceGroup(group, self.rank - first, degree, self.sent)
        # One of their own, so that tokens do not wait for the next block's weights.
        group = dist.new_group(timeout=timedelta(seconds=timeout_s))
        assert isinstance(group, dist.ProcessGroup)
        self.weights = WeightsGroup(group, self.rank, self.size, self.sent)

    def sequence(self, degree: int) -> SequenceGroup | None:
        """Return this rank among as many neighbouring ones that share tokens, a divisor of `size`; None for one."""
        return None if degree == 1 else self._sequences[degree]

    @property
    def everyone(self) -> SequenceGroup:
        """This rank among all, of whom there are several."""
        return self._sequences[self.size]

    def close(self) -> None:
        """Leave the group; the others lose this rank."""
        for connection in self._connections.values():
            connection.close()
        dist.destroy_process_group()

    def order(self, kind: Kind, order: Any) -> None:
        """Give an order to all other ranks, on rank 0."""
        for rank in range(1, self.size):
            self.say(kind, order, rank)

    def say(self, kind: Kind, message: Any, rank: int = 0) -> None:
        """Send a message to a rank: rank 0's is an order, another one's its answer."""
        with lost_ranks():
            self._connections[kind, rank].send_bytes(pickle.dumps(message))

    def hear(self, kind: Kind, rank: int = 0) -> Any:
        """Return the next message from a rank, whenever it comes."""
        with lost_ranks():
            return pickle.loads(self._connections[kind, rank].recv_bytes())

    def send(self, tensor: Tensor, rank: int) -> None:
        """Send a tensor to a rank."""
        self.sent.sent += tensor.nbytes
        flat = as_bytes(tensor)
        with lost_ranks():
            dist.send(flat, rank, group=self.everyone.group)

    def receive(self, shape: Sequence[int], dtype: torch.dtype, rank: int) -> Tensor:
        """Return a tensor that a rank sends. Function modes do not see it: what was sent has to be received."""
        with lost_ranks(), torch._C.DisableTorchFunction():
            tensor = torch.empty(*shape, dtype=dtype, device=self.device)
            flat = as_bytes(tensor)
            dist.recv(flat, rank, group=self.everyone.group)
        return tensor


class SequenceGroup:
    """Neighbouring ranks that shard the tokens of a forward; implements `sharding.SequenceRanks`."""

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int, sent: SentBytes) -> None:
        self.rank, self.size = rank, size
        self.group = group
        self._sent = sent

    def all_to_all(self, sent: Sequence[Tensor], received: Sequence[Sequence[int]]) -> list[Tensor]:
        dtype, bytes_sent = sent[0].dtype, [tensor.nbytes for tensor in sent]
        self._sent.exchanged += sum(bytes_sent) - bytes_sent[self.rank]
        bytes_received = [prod(shape) * dtype.itemsize for shape in received]
        source = sent[0].new_empty(sum(bytes_sent), dtype=torch.uint8)
        for place, one in zip(torch.split(source, bytes_sent), sent, strict=True):
            place.view(dtype).view(one.shape).copy_(one)
        flat = source.new_empty(sum(bytes_received))
        with lost_ranks():
            dist.all_to_all_single(flat, source, bytes_received, bytes_sent, group=self.group)
        return [
            part.view(dtype).view(*shape)
            for part, shape in zip(torch.split(flat, bytes_received), received, strict=True)
        ]

    def all_gather(self, own: Tensor, sizes: Sequence[int], dim: int) -> Tensor:
        self._sent.gathered += own.nbytes * (self.size - 1)
        # All send as much: shards differ by a few tokens.
        longest, first = max(sizes), own.movedim(dim, 0)
        padded = own.new_zeros(longest, *first.shape[1:])
        padded[: len(first)] = first
        whole = [torch.empty_like(padded) for _ in range(self.size)]
        into, source = [as_bytes(one) for one in whole], as_bytes(padded)
        with lost_ranks():
            dist.all_gather(into, source, group=self.group)
        return torch.cat([one[:size] for one, size in zip(whole, sizes, strict=True)]).movedim(0, dim)


class WeightsGroup:
    """The ranks over which weights are sharded; implements `sharded_blocks.WeightRanks`."""

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int, sent: SentBytes) -> None:
        self.rank, self.size = rank, size
        self._group = group
        self._sent = sent

    def gather(self, own: Tensor, whole: Tensor) -> Callable[[], None]:
        self._sent.weights += own.nbytes * (self.size - 1)
        with lost_ranks():
            work = _all_gather(whole, own, group=self._group, async_op=True)

        def wait() -> None:
            with lost_ranks():
                assert work is not None
                work.wait()

        return wait


def as_bytes(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes, (n,), so that every dtype can be sent; of a contiguous one without a copy."""
    return tensor.contiguous().view(-1).view(torch.uint8)


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Raise RankLostError for what torch.distributed and connections raise inside once a rank is lost."""
    try:
        yield
    except (RuntimeError, OSError, EOFError, AuthenticationError) as error:
        reason = f"{error}".partition("\n")[0] or type(error).__name__
        raise RankLostError(f"another rank of this replica is lost: {reason}") from None
