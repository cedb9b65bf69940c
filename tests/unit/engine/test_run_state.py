"""Runs that go on after the state of another, and how often a state is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from serve_app.engine import run_state
from serve_app.engine.run_state import Answer, RunStateCounters, StateSaver, from_bytes, to_bytes
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import StoreError
from serve_app.recipe.guidance import AdaptiveProjection
from serve_app.recipe.layers import EasyCache
from serve_app.sampling.request import SamplingRequest
from serve_app.sampling.samplers.samplers import SAMPLERS
from tests.unit.engine.mixes import RECIPE, TinyBackbone, request, tiny_flow

OTHER_S = 300.0
"""What another process may need to record the runs."""


def run(trajectory: Trajectory) -> torch.Tensor:
    """Answer a run to its end; return its latents."""
    trajectory.start()
    while trajectory.result is None:
        outputs = trajectory.backbone.network.answer(trajectory.pieces)
        trajectory.feed(trajectory.denoised(outputs))
        trajectory.advance()
    return trajectory.result.latents


def cases() -> Iterator[tuple[Callable[[], TinyBackbone], SamplingRequest]]:
    """Yield runs of every sampler: of images, of a part of some, and of a part of a video on a flow's levels."""
    mask = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    flow_mask = torch.rand(1, 1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for name in SAMPLERS:
        yield TinyBackbone, request(sampler=name, steps=5, seed=3)
        yield TinyBackbone, request(sampler=name, steps=3, shape=(2, 4, 4, 4), noise_mask=mask)
        yield tiny_flow, request(sampler=name, steps=3, shape=(1, 3, 3, 4, 4), noise_mask=flow_mask)


def whole(backbone: Callable[[], TinyBackbone], asked: SamplingRequest) -> tuple[bytes, list[bytes]]:
    """Return the latents of a run that is not interrupted, and its answers, each as bytes."""
    trajectory = Trajectory(backbone(), asked, keeps_answers=True)  # type: ignore[arg-type]
    latents = run(trajectory)
    assert trajectory.answers
    return save({"latents": latents}), [to_bytes(number, [answer]) for number, answer in enumerate(trajectory.answers)]


def every_whole() -> list[tuple[bytes, list[bytes]]]:
    return [whole(*case) for case in cases()]


def interrupted(
    backbone: Callable[[], TinyBackbone],
    asked: SamplingRequest,
    recorded: tuple[bytes, list[bytes]],
    first: int = 1,
    every: int = 1,
) -> list[str]:
    """Return the answers after which a run that goes on does not end with the bits of one that was not interrupted.

    It is interrupted after the first of these, and after so many more each.
    """
    wanted, answers = load(recorded[0])["latents"], from_bytes(recorded[1])
    assert len(answers) == len(recorded[1])
    wrong = []
    for kept in range(first, len(answers) + 1, every):
        # As saved after every third answer.
        parts = [to_bytes(start, answers[start : min(start + 3, kept)]) for start in range(0, kept, 3)]
        network = backbone()
        resumed = Trajectory(network, asked, state=from_bytes(parts))  # type: ignore[arg-type]
        ended = run(resumed)
        if not torch.equal(ended, wanted) or not resumed.has_state:
            wrong.append(f"{asked.sampler.name} after {kept} of {len(answers)}")
        assert len(network.calls) == sum(isinstance(answer, tuple) for answer in answers[kept:])
    return wrong


# Each of a sampler's three runs is interrupted after a ninth of its answers, another ninth each; the long form has all.
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.long)])
def test_a_run_of_any_sampler_that_goes_on_after_any_answer_in_another_process_ends_with_the_same_bits(
    every: int,
) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        recorded = other.submit(every_whole).result(OTHER_S)
    wrong = []
    for number, (case, each) in enumerate(zip(cases(), recorded, strict=True)):
        wrong += interrupted(*case, each, first=1 + number % every, every=every)
    assert wrong == []


@pytest.mark.parametrize(
    "patch", [AdaptiveProjection(0.5, 5.0, -0.5), EasyCache(0.5, 0.1, 0.9), EasyCache(0.5, 0.1, 0.9, whole=True)]
)
def test_guidance_that_remembers_goes_on_with_what_it_remembered(patch: Any) -> None:
    asked = request(sampler="dpmpp_2m", steps=8, backbone=RECIPE.with_patch(patch))
    assert interrupted(TinyBackbone, asked, whole(TinyBackbone, asked)) == []


def test_progress_goes_on_at_the_step_and_a_nodes_own_function_sees_every_step() -> None:
    asked = request(sampler="heun", steps=6)
    trajectory = Trajectory(TinyBackbone(), asked, keeps_answers=True)
    run(trajectory)
    seen: list[int] = []
    steps: list[tuple[int, int]] = []
    again = replace(asked, after_step=lambda step, denoised, x, total: seen.append(step))
    run(Trajectory(TinyBackbone(), again, lambda *step: steps.append(step), state=(trajectory.answers or [])[:7]))
    assert steps == [(3, 6), (4, 6), (5, 6), (6, 6)]
    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "state",
    [
        [(torch.zeros(1, 4, 4, 4),)],  # of a run without a negative
        [(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))],  # of another size
        [0.5],  # of a sampler that chooses its steps
        [(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4))] * 9,  # of more steps
    ],
)
def test_a_state_of_another_run_is_left_out(state: Sequence[Answer]) -> None:
    asked = request(steps=4, seed=2)
    wanted = run(Trajectory(TinyBackbone(), asked))
    trajectory = Trajectory(TinyBackbone(), asked, state=state, keeps_answers=True)
    assert torch.equal(run(trajectory), wanted)
    assert not trajectory.has_state
    assert len(trajectory.answers or ()) == 4


def test_of_a_damaged_state_what_comes_before_the_damage_is_used() -> None:
    answers: list[Answer] = [(torch.full((1, 2), float(number)),) for number in range(9)]
    parts = [to_bytes(first, answers[first : first + 3]) for first in (0, 3, 6)]
    for broken in (parts[1][:-3], b"", b"\xff" * 64, to_bytes(4, answers[4:6])):
        assert len(from_bytes([parts[0], broken, parts[2]])) == 3
    assert len(from_bytes([parts[0], parts[2]])) == 3
    assert [float(answer[0][0, 0]) for answer in from_bytes(parts) if isinstance(answer, tuple)] == [*range(9)]


class Files:
    """A store in memory that can be full."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.full = False

    def read(self, max_bytes: int) -> list[bytes]:
        return [self.parts[first] for first in sorted(self.parts)]

    def write(self, first: int, part: bytes) -> None:
        if self.full:
            raise StoreError("no space is left")
        self.parts[first] = part

    def delete(self) -> None:
        self.parts.clear()


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(run_state, "perf_counter", lambda: self.now_s)


class Saving:
    """A saver whose every save takes a second of a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, max_bytes: int = 10**9) -> None:
        self.clock, self.files, self.counters = Clock(monkeypatch), Files(), RunStateCounters()
        write = self.files.write
        monkeypatch.setattr(self.files, "write", lambda *part: (self.advance(1.0), write(*part)))
        self.writer = ThreadPoolExecutor(1)
        self.saver = StateSaver(self.files, self.writer, self.counters, after_s=5.0, max_bytes=max_bytes)
        self.number = 0

    def advance(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def step(self, seconds: float, numbers: int = 4) -> bool:
        """Take a step; return whether its answers were taken."""
        self.advance(seconds)
        self.number += 1
        answers: list[Answer] = [(torch.full((numbers,), float(self.number)),)]
        if not self.saver.wants(answers):
            return False
        self.saver.take(answers)().result()
        return True

    def saved(self) -> list[float]:
        return [float(answer[0][0]) for answer in from_bytes(self.files.read(10**9)) if isinstance(answer, tuple)]


def test_nothing_is_saved_of_a_short_run_and_of_a_long_one_a_hundredth_of_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saving = Saving(monkeypatch)
    assert [saving.step(1.0) for _ in range(5)] == [False] * 4 + [True]
    taken = [saving.step(1.0) for _ in range(250)]
    assert sum(taken) == 2
    assert saving.counters.saves == 3


def test_a_full_store_fails_nothing_and_what_could_not_be_saved_is_saved_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saving = Saving(monkeypatch)
    saving.files.full = True
    assert saving.step(6.0)
    assert saving.saved() == []
    saving.files.full = False
    assert not saving.step(1.0)
    assert saving.step(run_state.RETRY_S)
    assert saving.saved() == [1.0, 3.0]
    assert (saving.counters.failures, saving.counters.saves) == (1, 1)


def test_copies_that_are_done_out_of_turn_or_never_reported_keep_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    saving = Saving(monkeypatch)
    first, second, third = (saving.saver.take([(torch.full((1,), number),)], now=True) for number in (1.0, 2.0, 3.0))
    second().result()
    first().result()
    assert saving.saved() == [1.0, 2.0]
    # The first of these is of a step that was enqueued as its run was cancelled.
    saving.saver.take([(torch.full((1,), 4.0),)])
    saving.saver.take([], now=True)().result()
    third().result()
    assert saving.saved() == [1.0, 2.0, 3.0, 4.0]
    assert len(saving.files.parts) == 2


def test_large_answers_are_copied_from_the_device_at_each_step_and_saved_when_a_save_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_state, "DEVICE_BYTES", 64)
    saving = Saving(monkeypatch)
    assert all(saving.step(1.0, numbers=32) for _ in range(7))
    assert saving.counters.saves == 1
    assert saving.saved() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_of_a_state_that_becomes_too_large_the_beginning_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    saving = Saving(monkeypatch, max_bytes=100)
    saving.step(6.0)
    for _ in range(8):
        saving.step(200.0)
    assert saving.saved() == [float(number) for number in range(1, 7)]
    assert saving.saver.is_full


def test_the_state_of_a_run_that_has_ended_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    saving = Saving(monkeypatch)
    saving.step(6.0)
    saving.saver.delete()
    saving.writer.shutdown()
    assert saving.files.parts == {}
