"""Ends a replica's process that can no longer be trusted to say so itself: what never ends, memory without end.

A thread beside the event loop; no Ray. Whoever needs the replica notices the end of its process at once, and Serve
starts another. Last words go to the log before: which nodes ran, and every thread's stack where something did not end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil

from serve_app import log

_log = log.get("replica.watchdog")

LOOK_S = 0.25
"""How often it looks."""
RELIEF_S = 1.0
"""How long memory may stay above its limit after what can be freed was asked to be."""

LAST_WORDS_S = 5.0
"""How long the last words of a process may take."""
RESERVED_BYTES = 1 << 30
"""What stacks of threads and the allocator reserve and do not use, at most, beyond what they do as it starts."""

BLOCKED, FULL, REPLACED, STUCK = 81, 82, 83, 84
"""Exit statuses: the event loop was blocked; memory above its limit; a node that did not end when it had to; a forward
or an import that did not.
"""


class Watchdog:
    """Watches one event loop and the memory of its process, from `start` to `stop`.

    hang_s: how long the loop may do nothing else than one thing. memory_bytes: as `own_bytes`; 0 is no limit.
    turns: the numbers of the engine's turn and of the load that is under way, 0 for none; turn_s: how long each may
    take. unwanted_turn: that of the engine's turn if all it is for was cancelled, 0 if not; unwanted: called in the
    loop with the seconds that this has been so, again and again, and with 0 once it is over.
    relieve: frees what can be, in the loop. underway: which nodes run, for the log; asked in the watchdog's thread.
    waited_s: how long a thread has waited for a processor since it began.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        hang_s: float,
        memory_bytes: int,
        relieve: Callable[[], None],
        underway: Callable[[], list[str]],
        turns: Callable[[], tuple[int, ...]] = tuple,
        turn_s: float = 0.0,
        unwanted_turn: Callable[[], int] = int,
        unwanted: Callable[[float], object] = lambda seconds: None,
        exit: Callable[[int], object] = os._exit,
        own_bytes: Callable[[], int] | None = None,
        waited_s: Callable[[int], float] | None = None,
    ) -> None:
        self._loop = loop
        self._hang_s = hang_s
        self._memory_bytes = memory_bytes
        self._relieve = relieve
        self._underway = underway
        self._turns, self._turn_s = turns, turn_s
        self._in_turns: list[tuple[int, float]] = []
        self._unwanted_turn, self._unwanted = unwanted_turn, unwanted
        self._in_unwanted = 0, 0.0
        self._exit = exit
        self._own_bytes = own_bytes or partial(_own_bytes, psutil.Process())
        self._waited_s = waited_s or _waited_s
        self._loop_thread, self._waited_before_s, self._looked_s = 0, 0.0, time.monotonic()
        self._ticked = threading.Event()
        self._ticked.set()
        self._missed_s = self._above_s = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_S):
            try:
                self.look()
            except Exception:
                # Where there is no memory left, also for looking, the next look tells.
                _log.exception("the watchdog could not look")

    def look(self) -> None:
        """Look once, LOOK_S after the last time.

        Time is counted in looks and not by a clock: a process that was stopped, or a call that let no thread run, has
        kept the watchdog from looking as well, and the loop may answer as soon as both can run. Nor does the time count
        for which the loop's thread waited for a processor: on a busy machine it is late, and not blocked.
        """
        ran_s = LOOK_S * self._share_of_loop()
        if self._ticked.is_set():
            self._missed_s = 0.0
            self._ticked.clear()
            try:
                self._loop.call_soon_threadsafe(self._tick)
            except RuntimeError:  # the loop is closed, and with it whatever there was to watch
                self._ticked.set()
                self.stop()
                return
        else:
            self._missed_s += ran_s
        if self._missed_s >= self._hang_s:
            self._end(BLOCKED, f"the event loop has been blocked for {self._hang_s:g} s")
            return
        if self._memory_bytes:
            self._look_at_memory()
        self._look_at_the_engine()

    def _tick(self) -> None:
        self._loop_thread = threading.get_native_id()
        self._ticked.set()

    def _share_of_loop(self) -> float:
        """Return for which share of the time since the last look the loop's thread did not wait for a processor."""
        now_s, waited_s = time.monotonic(), self._waited_s(self._loop_thread)
        passed_s, waited_now_s = now_s - self._looked_s, waited_s - self._waited_before_s
        self._looked_s, self._waited_before_s = now_s, waited_s
        return 1.0 - min(1.0, max(0.0, waited_now_s / passed_s)) if passed_s > 0 else 1.0

    def _look_at_the_engine(self) -> None:
        turns = self._turns()
        before = self._in_turns or [(0, 0.0)] * len(turns)
        self._in_turns = [
            (turn, lasted_s + LOOK_S if turn and turn == last else 0.0)
            for turn, (last, lasted_s) in zip(turns, before, strict=True)
        ]
        if any(lasted_s >= self._turn_s for turn, lasted_s in self._in_turns if turn):
            self._end(STUCK, f"one forward, or the loading of a model, has taken longer than {self._turn_s:g} s")
        last, lasted_s = self._in_unwanted
        turn = self._unwanted_turn()
        self._in_unwanted = turn, lasted_s + LOOK_S if turn and turn == last else 0.0
        if (turn and turn == last) or lasted_s:
            self._loop.call_soon_threadsafe(self._unwanted, self._in_unwanted[1])

    def _look_at_memory(self) -> None:
        used = self._own_bytes()
        if used <= self._memory_bytes:
            self._above_s = 0.0
            return
        if self._above_s == 0.0:
            _log.warning("memory: %d bytes are above memory_bytes=%d; results are freed", used, self._memory_bytes)
            self._loop.call_soon_threadsafe(self._relieve)
        self._above_s += LOOK_S
        if self._above_s > RELIEF_S:
            self._end(FULL, f"the process has {used} bytes of memory, above memory_bytes={self._memory_bytes}")

    def _end(self, status: int, why: str) -> None:
        end(status, why, self._underway, self._exit, stacks=status in (BLOCKED, STUCK))


def end(
    status: int,
    why: str,
    underway: Callable[[], list[str]],
    exit: Callable[[int], object],
    *,
    stacks: bool = False,
) -> None:
    """End this process with last words. stacks: of every thread, among them."""
    # Whoever is blocked may hold the log's lock; this needs none, nor Python's own.
    faulthandler.dump_traceback_later(LAST_WORDS_S, exit=True, file=sys.__stderr__ or 2)
    try:
        nodes = ", ".join(underway()) or "no node"
        _log.error("this process ends with status %d: %s; running: %s", status, why, nodes)
        if stacks:
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
    finally:
        exit(status)
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def ends_within(seconds: float, what: str, exit: Callable[[int], object] = os._exit) -> Iterator[None]:
    """End this process, with last words, if the block takes longer; whatever blocks it."""
    why = f"{what} has taken longer than {seconds:g} s"
    timer = threading.Timer(seconds, end, (STUCK, why, list, exit), {"stacks": True})
    timer.daemon = True
    timer.start()
    # Where the block lets no thread run, this does without.
    faulthandler.dump_traceback_later(seconds + LAST_WORDS_S, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()


def limit_allocations(memory_bytes: int) -> None:
    """Let an allocation that alone would take the process far over memory_bytes fail, as an error of who asks.

    The soft limit of writable private memory becomes what there is now, memory_bytes and RESERVED_BYTES. What grows
    little by little meets the watchdog before, which counts memory in use; so nobody else's allocation fails. Not for a
    process with a GPU, whose driver reserves more than it uses.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = _vm_data_bytes() + memory_bytes + RESERVED_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def free_unused() -> None:
    """Give back to the system what nothing refers to any more."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # only glibc keeps so much, and only it has this
        ctypes.CDLL(None).malloc_trim(0)


def _own_bytes(process: psutil.Process) -> int:
    """Return the memory in use that is the process's alone: not Ray's shared memory, nor files it has mapped."""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def _waited_s(thread: int) -> float:
    """Return for how long a thread of this process was ready to run and had no processor; 0 where that is unknown.

    Source: the kernel's documentation, scheduler/sched-stats.
    """
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _vm_data_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
