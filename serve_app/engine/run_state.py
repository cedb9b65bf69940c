"""The state of a sampler run that is under way, from which another replica goes on where this one stopped.

A run is a function of its request and of its networks' answers: samplers draw their noise by seed and compute all else.
So its state is the list of those answers. A new run that replays them stands where the old one did, to the bit,
whatever its sampler, its history and its guidance (deterministic replay). Only forwards that a guidance rule runs by
itself, outside evaluations, are computed again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from math import inf
from time import perf_counter
from typing import Protocol, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from serve_app.errors import RunStateError, StoreError
from serve_app.log import get
from serve_app.sampling.transfer import to_host, unpinned

log = get("engine")

Answer: TypeAlias = "tuple[Tensor, ...] | float"
"""The outputs of a network for the pieces of one evaluation, or the number of an error estimate."""

SHARE = 0.01
"""The most of a run's time that saving its state may take."""
DEVICE_BYTES = 16 * 1024 * 1024
"""The most that answers take of a device's memory before they are copied to the host."""
RETRY_S = 60.0
"""The time from a failed save to the next."""


@dataclass(slots=True)
class RunStateCounters:
    """Saved parts of states, their bytes, failures to save; runs that went on from a state, and steps saved by that."""

    saves: int = 0
    bytes: int = 0
    failures: int = 0
    resumed: int = 0
    steps: int = 0


class StateFiles(Protocol):
    """Where the state of one run is kept, in parts. Called in worker threads. Errors: StoreError, a disk's OSError."""

    def read(self, max_bytes: int) -> list[bytes]:
        """Return the parts in order, as many as have no more bytes; those of another version or recipe are deleted."""
        ...

    def write(self, first: int, part: bytes) -> None:
        """Keep a part. first: the number of its first answer."""
        ...

    def delete(self) -> None:
        """Delete all parts."""
        ...


def to_bytes(first: int, answers: Sequence[Answer]) -> bytes:
    """Return answers as safetensors. first: the number of the first of them in their run."""
    tensors: dict[str, Tensor] = {}
    for number, answer in enumerate(answers, first):
        if isinstance(answer, tuple):
            tensors |= {f"{number}.{piece}": output.contiguous() for piece, output in enumerate(answer)}
        else:
            tensors[str(number)] = torch.tensor(answer, dtype=torch.float64)
    data: bytes = save(tensors)
    return data


def from_bytes(parts: Sequence[bytes]) -> list[Answer]:
    """Return the answers of parts up to the first that is damaged or missing."""
    answers: list[Answer] = []
    for part in parts:
        try:
            read = _answers(load(part))
        except (SafetensorError, ValueError) as error:
            log.warning("part of a run's state is damaged, and what came after it is computed again: %s", error)
            break
        if min(read, default=-1) != len(answers) or sorted(read) != [*range(len(answers), len(answers) + len(read))]:
            log.warning("part of a run's state is missing, and what came after it is computed again")
            break
        answers += [read[number] for number in sorted(read)]
    return answers


def _answers(tensors: dict[str, Tensor]) -> dict[int, Answer]:
    numbers: dict[int, Answer] = {}
    outputs: dict[int, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, piece = name.partition(".")
        if piece:
            outputs.setdefault(int(number), {})[int(piece)] = tensor
        else:
            numbers[int(number)] = float(tensor)
    return numbers | {number: tuple(of[piece] for piece in sorted(of)) for number, of in outputs.items()}


def check_outputs(outputs: Answer, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """Return a replayed answer as the outputs for pieces of these shapes. Errors: RunStateError."""
    given = [output.shape for output in outputs] if isinstance(outputs, tuple) else outputs
    if given != [*shapes]:
        raise RunStateError(f"the state of a run has {given} where it needs {[*shapes]}")
    assert isinstance(outputs, tuple)
    return outputs


class StateSaver:
    """Saves the state of one run part by part, as often as takes no more than SHARE of its time.

    writer: runs one save after another. after_s: nothing is saved of a run that has taken less. max_bytes: of one run's
    state; what goes beyond is not saved.
    """

    def __init__(
        self, files: StateFiles, writer: Executor, counters: RunStateCounters, *, after_s: float, max_bytes: int
    ) -> None:
        self.files = files
        self._writer = writer
        self._counters = counters
        self._due_s = perf_counter() + after_s
        self._left_bytes = max_bytes
        self._first = 0
        # Copies that may not be done, and how many answers were copied and how many of these are done.
        self._copied: deque[Answer] = deque()
        self._taken = self._kept = 0
        self._spent_s = 0.0
        # Answers whose save failed; only the writer's thread touches them.
        self._unsaved: list[Answer] = []
        self._exists = False
        self.is_full = False
        """Whether the state has become too large to be kept."""

    def read(self) -> list[Answer]:
        """Return the answers of an earlier replica's run; [] if there are none or they cannot be read."""
        try:
            parts = self.files.read(self._left_bytes)
        except (StoreError, OSError) as error:
            log.warning("the state of a run cannot be read, so it starts again: %s", error)
            return []
        self._exists = bool(parts)
        answers = from_bytes(parts)
        self._first = len(answers)
        return answers

    def resumed(self, steps: int) -> None:
        """Count a run that went on. steps: how many it did not repeat."""
        self._counters.resumed += 1
        self._counters.steps += steps

    def restart(self) -> None:
        """Delete what was read: the run starts again."""
        self._first = 0
        self._writer.submit(self._delete)

    def wants(self, answers: Sequence[Answer]) -> bool:
        """Whether it is time to take a run's answers: to save them, or since they fill the device's memory."""
        if not answers:
            return False
        # All are about as large as the last one.
        return perf_counter() >= self._due_s or _nbytes(answers[-1]) * len(answers) > DEVICE_BYTES

    def take(self, answers: Sequence[Answer], *, now: bool = False) -> Callable[[], Future[None]]:
        """Copy answers to the host; the returned function has them saved, once the device has done the copies.

        now: they are saved even if a save is not due.
        """
        began_s = perf_counter()
        saves = now or began_s >= self._due_s
        if saves:
            self._due_s = inf
        self._copied += [tuple(map(to_host, answer)) if isinstance(answer, tuple) else answer for answer in answers]
        self._taken += len(answers)
        return partial(self._writer.submit, self._keep, self._taken, saves, perf_counter() - began_s)

    def delete(self) -> None:
        """Delete what was saved, once saves under way are done: the run has ended."""
        self._writer.submit(self._delete)

    def _keep(self, taken: int, saves: bool, took_s: float) -> None:
        """Keep what has been copied up to a number of answers; later copies may not be done. took_s: to copy them."""
        began_s = perf_counter()
        # What was copied earlier is done too, and its own call may come later, or never if its run was cancelled.
        answers = [self._copied.popleft() for _ in range(taken - self._kept)]
        self._kept = max(self._kept, taken)
        if self.is_full:
            return
        self._unsaved += [tuple(map(unpinned, answer)) if isinstance(answer, tuple) else answer for answer in answers]
        self._left_bytes -= sum(map(_nbytes, answers))
        if self._left_bytes < 0:
            self.is_full, self._unsaved = True, []
            log.warning("the state of a run is larger than resume.max_bytes; its further steps are not kept")
        elif saves and self._unsaved:
            self._save()
        now_s = perf_counter()
        self._spent_s += took_s + now_s - began_s
        if saves and not self._unsaved:
            self._due_s, self._spent_s = now_s + self._spent_s / SHARE, 0.0

    def _save(self) -> None:
        part = to_bytes(self._first, self._unsaved)
        self._exists = True
        try:
            self.files.write(self._first, part)
        except (StoreError, OSError) as error:
            self._counters.failures += 1
            self._due_s = perf_counter() + RETRY_S
            log.warning("the state of a run cannot be kept, which does no harm unless its replica is lost: %s", error)
            return
        self._first += len(self._unsaved)
        self._unsaved = []
        self._counters.saves += 1
        self._counters.bytes += len(part)

    def _delete(self) -> None:
        if not self._exists:
            return
        try:
            self.files.delete()
        except (StoreError, OSError) as error:
            log.warning("the state of a run that has ended cannot be deleted: %s", error)


def _nbytes(answer: Answer) -> int:
    return sum(output.nbytes for output in answer) if isinstance(answer, tuple) else 0
