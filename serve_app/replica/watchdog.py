"""The watchdog: a thread that ends a replica's process if its event loop is blocked, a computation never ends, or
memory grows beyond its limit.

No Ray. The scheduler notices the end of the process at once, and Serve starts another. Before, it logs which nodes ran,
and every thread's stack if something did not end.
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
"""The interval of checks."""
RELIEF_S = 1.0
"""How long memory may stay above its limit after an attempt to free some."""

LAST_WORDS_S = 5.0
"""How long logging before the end may take."""
RESERVED_BYTES = 1 << 30
"""Address space that thread stacks and the allocator may reserve without use, beyond that at the start."""

BLOCKED, FULL, REPLACED, STUCK = 81, 82, 83, 84
"""Exit statuses: the event loop was blocked; memory above its limit; a node that did not end when it had to; a forward
or an import that did not.
"""


class Watchdog:
    """Watches one event loop and the memory of its process, from `start` to `stop`.

    hang_s: how long one call may block the loop. memory_bytes: as `own_bytes`; 0 is no limit. turns: the numbers of the
    engine's running turn and load, 0 for none; turn_s: how long each may take. unwanted_turn: the number of the
    engine's turn if all of its jobs were cancelled, else 0; unwanted: called repeatedly in the loop with the seconds
    that this has lasted, and with 0 at its end. relieve: frees memory, in the loop. underway: returns the running
    nodes, for the log; called in the watchdog's thread. waited_s: returns how long a thread has waited for a CPU since
    it began.
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
                # Without memory for this check the next one reports.
                _log.exception("the watchdog could not look")

    def look(self) -> None:
        """Check once, LOOK_S after the last time.

        Time is counted in checks and not by a clock: a process that was stopped, or a call that let no thread run, has
        stopped the watchdog as well, and the loop may answer as soon as both can run. Time during which the loop's
        thread waited for a CPU does not count either: on a busy machine it is late, and not blocked.
        """
        ran_s = LOOK_S * self._share_of_loop()
        if self._ticked.is_set():
            self._missed_s = 0.0
            self._ticked.clear()
            try:
                self._loop.call_soon_threadsafe(self._tick)
            except RuntimeError:  # the loop is closed
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
        """Return the share of the time since the last check in which the loop's thread did not wait for a CPU."""
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
        exit_process(status, why, self._underway, self._exit, stacks=status in (BLOCKED, STUCK))


def exit_process(
    status: int,
    why: str,
    underway: Callable[[], list[str]],
    exit: Callable[[int], object],
    *,
    stacks: bool = False,
) -> None:
    """Log the reason and end this process. stacks: log every thread's."""
    # A blocked thread may hold the log's lock; this needs none, nor the GIL.
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
def exit_unless_done_within(seconds: float, what: str, exit: Callable[[int], object] = os._exit) -> Iterator[None]:
    """End this process, with a log entry, if the context takes longer."""
    why = f"{what} has taken longer than {seconds:g} s"
    timer = threading.Timer(seconds, exit_process, (STUCK, why, list, exit), {"stacks": True})
    timer.daemon = True
    timer.start()
    # This works even if no Python thread can run.
    faulthandler.dump_traceback_later(seconds + LAST_WORDS_S, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()


def limit_allocations(memory_bytes: int) -> None:
    """Make a single allocation far over memory_bytes fail, as an error of its caller.

    The soft limit of writable private memory becomes the current use, memory_bytes and RESERVED_BYTES. Gradual growth
    is caught before by the watchdog, which counts memory in use; so other allocations do not fail. Not for a process
    with a GPU, whose driver reserves more than it uses.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = _vm_data_bytes() + memory_bytes + RESERVED_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def free_unused() -> None:
    """Return free memory to the system."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # only glibc has it, and needs it
        ctypes.CDLL(None).malloc_trim(0)


def _own_bytes(process: psutil.Process) -> int:
    """Return the process's private memory in use: without Ray's shared memory and mapped files."""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def _waited_s(thread: int) -> float:
    """Return how long a thread of this process has waited for a CPU, in seconds; 0 if unknown.

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
