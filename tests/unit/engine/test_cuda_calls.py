"""Production's streams, events, noise and graphs on torch's own Python, over a driver that is not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from serve_app.engine.memory import CardMemory
from serve_app.engine.timeline import timeline_of
from serve_app.models.forward import EAGER, CapturableCall, Replays
from serve_app.models.kernels.cuda_graphs import GraphRecorder, replays_of
from serve_app.models.weights.upload import CudaCopies
from serve_app.sampling.draws import CudaDraws
from tests.unit.engine.card import CARD, Card
from tests.unit.engine.card_driver import GB, Driver, driven
from tests.unit.engine.card_order import UnorderedError


@pytest.fixture
def card() -> Iterator[Card]:
    card = Card(total_bytes=24 * GB)
    with driven(driver_of(card)), card.used():
        yield card


def driver_of(card: Card) -> Driver:
    assert card.driver is not None
    return card.driver


def numbers(tensor: Tensor) -> list[float]:
    found: list[float] = tensor.flatten().cpu().tolist()
    return found


def test_torch_itself_refuses_a_device_without_an_index(card: Card) -> None:
    with pytest.raises(ValueError, match="with a specified index"):
        torch.cuda.set_per_process_memory_fraction(0.5, torch.device("cuda"))
    with pytest.raises(ValueError, match="replays are of one with its index"):
        replays_of(torch.device("cuda"))


def test_the_side_stream_waits_for_forwards_which_have_the_higher_priority_and_wait_for_nothing(card: Card) -> None:
    timeline = timeline_of(CARD)
    assert timeline.side_stream is not None
    with timeline.enqueueing():
        # The lower number goes first.
        assert torch.cuda.current_stream(CARD).priority == -1
        x = torch.ones(3, device=CARD) * 2
        with timeline.side_stream.enqueueing():
            assert torch.cuda.current_stream(CARD).priority == 0
            y = x + 1
        with pytest.raises(UnorderedError):
            y + 1
        # Until it is recorded, its memory may be used again by forwards.
        timeline.side_stream.keep(x)
        del x
    assert card.order.early == []


def test_durations_are_between_two_events_of_a_stream(card: Card) -> None:
    timeline = timeline_of(CARD)
    with timeline.enqueueing():
        began = timeline.mark()
        torch.ones(3, device=CARD).mul_(2)
        ended = timeline.mark()
    assert not ended.done()
    ended.wait()
    assert ended.done()
    assert ended.since(began) > 0


def test_copies_of_weights_come_after_what_was_enqueued_and_before_what_comes(card: Card) -> None:
    copies = CudaCopies(CARD)
    x = torch.ones(3, device=CARD)
    with copies.enqueueing(), pytest.raises(UnorderedError):
        x + 1
    copies.follow()
    with copies.enqueueing():
        x.mul_(2)
    with pytest.raises(UnorderedError):
        x + 1
    copies.lead()
    assert numbers(x + 1) == [3, 3, 3]
    copies.keep(x)
    copies.mark()()


def test_noise_is_drawn_on_a_stream_that_those_who_use_it_wait_for(card: Card) -> None:
    draws = CudaDraws(CARD)
    drawn: list[Tensor] = []

    def draw() -> Tensor:
        drawn.append(torch.ones(3, device=CARD) * 2)
        return drawn[0]

    hand_over = draws.made(draw)
    with pytest.raises(UnorderedError):
        drawn[0] + 1
    noise = hand_over()
    assert numbers(noise + 1) == [3, 3, 3]
    drawn.clear()
    del noise, hand_over
    assert card.order.early == []


@pytest.fixture
def recorder(card: Card) -> Iterator[GraphRecorder]:
    stream = torch.cuda.Stream(CARD, priority=-1)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield GraphRecorder(CARD)


def test_a_graph_does_again_what_was_captured_with_what_its_inputs_hold_by_then(recorder: GraphRecorder) -> None:
    x = torch.ones(3, device=CARD)
    graph = recorder.record(lambda: [x * 2 + 1])
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert numbers(graph.outputs[0]) == [2 * value + 1] * 3
    assert torch.cuda.current_stream(CARD).priority == -1


def test_graphs_share_a_pool_as_long_as_one_is_there_and_then_have_a_new_one(
    card: Card, recorder: GraphRecorder
) -> None:
    x, pools = torch.ones(300, device=CARD), driver_of(card).pools
    first, second = (recorder.record(lambda: [x * 2 + 1]) for _ in range(2))
    assert len(pools) == 1
    assert recorder.idle_bytes() > 0
    first.reset()
    third = recorder.record(lambda: [x + 1])
    assert len(pools) == 1
    # One is reset, the others go as nobody refers to them.
    second.reset()
    del third
    assert recorder.idle_bytes() == 0
    again = recorder.record(lambda: [x + 3])
    again.replay()
    assert numbers(again.outputs[0])[:1] == [4]
    torch.cuda.empty_cache()
    assert len(pools) == 1, "the first pool's memory was given back"


def test_a_call_that_cannot_be_captured_leaves_nothing_captured_and_the_next_is_as_any_other(
    card: Card, recorder: GraphRecorder
) -> None:
    x = torch.ones(3, device=CARD)
    other = recorder.record(lambda: [x + 1])
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        recorder.record(lambda: [x + torch.tensor([1.0, 2, 3], device=CARD)])
    with pytest.raises(RuntimeError, match="a shape"):
        recorder.record(lambda: [(_ for _ in ()).throw(RuntimeError("a shape"))])
    assert driver_of(card).captures == {}
    # Torch asserts here while it takes a stream for one that captures.
    torch.cuda.empty_cache()
    assert [pool.users for pool in driver_of(card).pools.values()] == [1]
    other.reset()
    assert recorder.record(lambda: [x + 1]).outputs


def test_memory_is_what_torch_counts_and_dropped_graphs_give_theirs_back(card: Card) -> None:
    replays = replays_of(CARD)
    memory = CardMemory(CARD, 20 * GB, replays)
    with timeline_of(CARD).enqueueing():
        weight, x = torch.ones(1000, device=CARD), torch.ones(1, 1000, device=CARD)
        call = CapturableCall({"x": x}, lambda inputs: [inputs["x"] * weight + 1])
        for _ in range(EAGER):
            replays.answer(weight, call)
        held = memory.allocated_bytes()
        memory.watch()
        replays.answer(weight, call)
        assert memory.replay_bytes() > 0
        assert memory.allocated_bytes() > held
        memory.watch()
        replays.answer(weight, call)
        assert memory.peak_bytes() == memory.allocated_bytes(), "a replay takes no more than it has"
        assert memory.empty_with_replays()
        assert (memory.allocated_bytes(), memory.replay_bytes(), memory.cached_bytes()) == (held, 0, 0)
        assert driver_of(card).pools == {}
    assert GraphRecorder(CARD).most_bytes() == 3 * GB


def test_recordings_are_made_dropped_and_made_again_with_other_weights(card: Card) -> None:
    replays = replays_of(CARD)
    with timeline_of(CARD).enqueueing():
        for _ in range(3):
            weight, x = torch.ones(8, device=CARD), torch.ones(1, 8, device=CARD)
            call = CapturableCall({"x": x}, lambda inputs, weight=weight: [inputs["x"] * weight])  # type: ignore[misc]
            for _ in range(EAGER + 1):
                assert numbers(replays.answer(weight, call)[0]) == [1] * 8
            replays.forget(weight)
    assert (replays.counters.recordings, replays.counters.failures) == (3, 0)
    assert isinstance(replays, Replays)
