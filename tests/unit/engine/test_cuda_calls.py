"""What CUDA itself is asked for: streams, waits, events and graphs, of timelines, weights, noise and recordings.

A list of calls stands for it. What they bring is a card's to show (`tests/gpu`); their order and kind are held here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.engine.timeline import timeline_of
from serve_app.models.kernels.cuda_graphs import GraphRecorder
from serve_app.models.weights.upload import CudaCopies
from serve_app.sampling.draws import CudaDraws

CARD = torch.device("cuda", 0)


class Cuda:
    """CUDA as torch has it. said: what it was asked for, in order; streams: those made; fails: a capture does."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.streams: list[Stream] = []
        self.current = Stream(self, "current", priority=-1)

    def stream_of(self, device: torch.device, priority: int = 0) -> Stream:
        self.streams.append(Stream(self, f"s{len(self.streams)}", priority))
        return self.streams[-1]

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def event(self, **kinds: bool) -> Event:
        return Event(self, kinds)

    def graph(self) -> Graph:
        return Graph(self)


class Stream:
    def __init__(self, cuda: Cuda, name: str, priority: int) -> None:
        self.cuda, self.name, self.priority = cuda, name, priority

    def wait_stream(self, other: Stream) -> None:
        self.cuda.said.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: Event) -> None:
        self.cuda.said.append(f"{self.name} waits for an event of {event.of}")


class Event:
    def __init__(self, cuda: Cuda, kinds: dict[str, bool]) -> None:
        self.cuda, self.kinds, self.done, self.of = cuda, kinds, False, ""

    def record(self, stream: Stream) -> None:
        self.of = stream.name
        self.cuda.said.append(f"an event of {stream.name}")

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = True

    def elapsed_time(self, other: Event) -> float:
        assert self.kinds["enable_timing"]
        assert other.kinds["enable_timing"]
        return 36.6


class Graph:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        self.cuda.said.append(f"{self.cuda.current.name} captures into {pool}, {capture_error_mode}")

    def capture_end(self) -> None:
        self.cuda.said.append("the capture ends")

    def replay(self) -> None:
        self.cuda.said.append("a replay")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda, pools = Cuda(), iter(range(9))
    replaced = {
        "Stream": cuda.stream_of,
        "stream": cuda.on,
        "current_stream": lambda device: cuda.current,
        "Event": cuda.event,
        "CUDAGraph": cuda.graph,
        "graph_pool_handle": lambda: f"pool {next(pools)}",
    }
    for name, ours in replaced.items():
        monkeypatch.setattr(torch.cuda, name, ours)
    return cuda


def test_forwards_have_the_higher_priority_and_wait_for_nothing_that_is_beside_them(cuda: Cuda) -> None:
    timeline = timeline_of(CARD)
    assert timeline.side_stream is not None
    forwards, beside = cuda.streams
    # The lower number goes first.
    assert forwards.priority < beside.priority
    with timeline.enqueueing():
        assert cuda.current is forwards
        assert cuda.said == []
        with timeline.side_stream.enqueueing():
            assert cuda.current is beside
    assert cuda.said == ["s1 waits for s0"]


def test_durations_are_those_between_two_events_whose_wait_leaves_the_processor_alone(cuda: Cuda) -> None:
    timeline = timeline_of(CARD)
    began, ended = timeline.mark(), timeline.mark()
    assert cuda.said == ["an event of s0"] * 2
    assert ended._event.kinds["blocking"]  # type: ignore[attr-defined]
    assert not ended.done()
    ended.wait()
    assert ended.done()
    assert ended.since(began) == pytest.approx(0.0366)


def test_copies_of_weights_begin_after_what_was_asked_for_and_forwards_after_them(cuda: Cuda) -> None:
    copies = CudaCopies(CARD)
    copies.follow()
    copies.lead()
    with copies.enqueueing():
        assert cuda.current is cuda.streams[0]
    copies.mark()
    assert cuda.said == ["s0 waits for current", "current waits for s0", "an event of s0"]


def test_noise_is_drawn_beside_what_is_asked_for_which_waits_for_it_on_the_card(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "record_stream", lambda noise, stream: cuda.said.append(f"kept for {stream.name}"))
    draws = CudaDraws(CARD)
    [stream] = cuda.streams
    assert stream.priority == cuda.current.priority

    def draw() -> Tensor:
        cuda.said.append(f"{cuda.current.name} draws")
        return torch.ones(3)

    hand_over = draws.made(draw)
    assert cuda.said == ["s0 draws", "an event of s0"]
    cuda.said.clear()
    assert hand_over().tolist() == [1, 1, 1]
    assert cuda.said == ["current waits for an event of s0", "kept for current"]


def test_all_graphs_share_a_pool_and_are_captured_between_what_was_asked_for_and_what_comes(cuda: Cuda) -> None:
    recorder = GraphRecorder(CARD)
    for number in range(2):
        graph = recorder.record(lambda number=number: [torch.ones(1) * number])  # type: ignore[misc]
        assert [float(output) for output in graph.outputs] == [number]
        # Other threads go on using the card meanwhile.
        assert cuda.said == [
            "s0 waits for current",
            "s0 captures into pool 0, thread_local",
            "the capture ends",
            "current waits for s0",
        ]
        cuda.said.clear()
    assert [stream.priority for stream in cuda.streams] == [cuda.current.priority]
    graph.replay()
    assert cuda.said == ["a replay"]


def test_a_capture_that_fails_is_ended_and_the_next_is_as_any_other(cuda: Cuda) -> None:
    recorder = GraphRecorder(CARD)

    def call() -> list[Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(call)
    assert cuda.said[-1] == "the capture ends"
    assert recorder.record(lambda: [torch.ones(1)]).outputs
