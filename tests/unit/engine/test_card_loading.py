"""Weights on their way to the honest card: what a load asks of it, and that nothing of it waits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serve_app.models.kernels.packing import move_to
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.weights.upload import BUFFERS, HostCopies, Ring, uploading
from tests.unit.engine.card import CARD, Card

BUFFER = 4096


class Network(nn.Module):
    """Layers as files have them: many small ones, one of several buffers, one that lies turned, one used twice."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def tensor(*shape: int, dtype: torch.dtype = torch.float16) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator).to(dtype), requires_grad=False)

        self.small = nn.ParameterList(tensor(5, 3) for _ in range(20))
        self.odd = tensor(7, dtype=torch.float32)
        self.number = tensor()
        self.large = tensor(100, 64)
        self.turned = nn.Parameter(torch.randn(24, 40, generator=generator).half().t(), requires_grad=False)
        self.again = self.large
        eight = EightBitWeight(torch.randn(48, 32, generator=generator).to(torch.float8_e4m3fn), torch.tensor([0.5]))
        self.kept = QuantizedLinear(eight, tensor(48))


def uploaded(card: Card, dtype: torch.dtype, copies: Any = None) -> Network:
    network = Network()
    with torch.no_grad(), card.used():
        move_to(network, CARD, dtype, Ring(CARD, copies or HostCopies(), BUFFER))
    return network


def held(tensor: Any) -> Tensor:
    numbers: Tensor = tensor.held
    return numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_every_tensor_arrives_as_if_it_had_been_converted_here(dtype: torch.dtype) -> None:
    ours, plain = uploaded(Card(), dtype), Network()
    for (name, parameter), (_, wanted) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(held(parameter), wanted.to(dtype)), name
        assert parameter.dtype == dtype
    assert ours.again is ours.large
    kept, stored = ours.kept.quantized, plain.kept.quantized
    assert isinstance(kept, EightBitWeight)
    assert isinstance(stored, EightBitWeight)
    assert torch.equal(held(kept.stored).float(), stored.stored.float())
    assert ours.kept.weight.dtype == dtype


def test_the_host_waits_for_no_copy_and_sends_many_tensors_at_once() -> None:
    card = Card()
    uploaded(card, torch.float32)
    counts = card.counts
    # Of 27 tensors and three parts more of a large one each is put in its place, and one is made there.
    assert (counts.copies, counts.stalls, counts.kernels) == (6, 0, 31)


class Slow(HostCopies):
    """Copies that are done when they are waited for. followed: how many were asked for before each `follow`."""

    def __init__(self) -> None:
        self.marks = 0
        self.waited: list[int] = []
        self.followed: list[int] = []

    def follow(self) -> None:
        self.followed.append(self.marks)

    def enqueueing(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def mark(self) -> Callable[[], object]:
        number, self.marks = self.marks, self.marks + 1
        return lambda: self.waited.append(number)


def test_a_buffer_is_filled_again_once_the_device_has_read_it_and_all_is_there_at_the_end() -> None:
    copies = Slow()
    uploaded(Card(), torch.float16, copies)
    assert copies.followed == [0]
    # Of what fills six, as many wait for their buffer as there are more than buffers; then all for the last.
    assert sorted(copies.waited) == [*range(6 - BUFFERS), 6]


def test_an_unreadable_file_ends_the_load_after_the_queued_copies() -> None:
    class Broken(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.copy_:
                raise OSError("the disk is gone")
            return super().__torch_function__(func, types, args, kwargs)

    copies = Slow()
    ring = Ring(torch.device("cpu"), copies, BUFFER)

    def upload() -> None:
        with uploading(ring.device, ring) as send:
            send(torch.ones(3))
            send(torch.ones(3).as_subclass(Broken))

    with pytest.raises(OSError, match="the disk is gone"):
        upload()
    assert copies.waited == [0]
