"""Sandboxed decoding of untrusted files in processes of their own, with results sent through a pipe.

A decoder (`decoder_process`) imports Pillow and PyAV once and forks for each file. The fork has limits of memory and
time, and none of this process's environment; if it crashes, its file's job gets the reason and no other job is
affected.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from serve_app.config.limits import SizeLimits
from serve_app.errors import NodeError
from serve_app.limits import refused
from serve_app.media.wire import FULL, LENGTH, begin

AT_ONCE = max(2, min(8, os.cpu_count() or 1))
"""Files of one owner that are decoded at once; others wait. One more decoder is reserved for other owners."""
LOOK_S = 0.2
"""How often cancellation is checked."""
CHUNK = 1 << 20
HEADER_BYTES = 1 << 16
"""The largest header of a decoder's answer."""
ENVIRONMENT = frozenset({"PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SERVE_APP_INSTANCE"})
"""Environment variables that a decoder inherits. By the last one the reaper finds it."""
COUNTED = frozenset({"limits.image_pixels", "limits.decoder_bytes"})
"""Limits that are enforced in a decoder; their refusals are counted in this process."""
DTYPES = {"uint8": np.uint8, "float32": np.float32}

File: TypeAlias = bytes | BinaryIO


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """Limits of decoding one file, and a check for cancellation. seconds: a time limit beside that of `limits`.

    owner: the file's tenant; tenants share this process's decoders fairly.
    """

    sizes: SizeLimits
    stopped: Callable[[], bool] = lambda: False
    seconds: float = float("inf")
    owner: str = ""

    @property
    def within_s(self) -> float:
        """The time limit in seconds."""
        return min(self.seconds, self.sizes.decoder_s)


class Pending:
    """An array that a decoder is about to send: its shape is known before memory is allocated for it."""

    def __init__(self, shape: tuple[int, ...], dtype: str, read: Callable[[memoryview], None]) -> None:
        self.shape, self._dtype, self._read = shape, dtype, read

    def read(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Read the array; once, before the next answer."""
        array: np.ndarray[Any, np.dtype[Any]] = np.empty(self.shape, DTYPES[self._dtype])
        self._read(array.data.cast("B") if array.size else memoryview(b""))
        return array


Answer: TypeAlias = dict[str, Any] | bytes | Pending


@contextmanager
def decoding(
    task: str, files: Sequence[File], what: str, bounds: DecoderLimits, **arguments: Any
) -> Iterator[Iterator[Answer]]:
    """Run a task of `decoder_process.TASKS` in a decoder, and yield its answers as they arrive.

    what: the file's name in messages. Errors: NodeError for a refused file, for a decoder that took too much memory or
    time or has crashed, and after cancellation.
    """
    decoder = take(what, bounds)
    try:
        yield decoder.answers(task, files, what, bounds, arguments)
    except (EOFError, BrokenPipeError) as error:
        raise NodeError(f"{what} cannot be read: {decoder.end(bounds.sizes)}") from error
    finally:
        give_back(decoder, bounds.owner)


class DecoderProcess:
    """One process that decodes one file after another. idle: whether it waits for the next one."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="serve-app-decoder-")
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {name: value for name, value in os.environ.items() if name in ENVIRONMENT}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TMPDIR": self._folder, "SVT_LOG": "1"}
        # Idle threads would reserve address space, which is limited.
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serve_app.media.decoder_process"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=self._folder,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
        for descriptor in (self._to, self._from):
            os.set_blocking(descriptor, False)
            # Larger pipes need fewer context switches.
            with suppress(OSError, AttributeError):
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, CHUNK)
        self._wait: Callable[[int, int], None] = lambda descriptor, event: None
        self.idle = True

    @property
    def alive(self) -> bool:
        """Whether the process can take a task."""
        return self.idle and self.process.poll() is None

    def answers(
        self, task: str, files: Sequence[File], what: str, bounds: DecoderLimits, arguments: dict[str, Any]
    ) -> Iterator[Answer]:
        """Yield a task's answers. Errors: NodeError; EOFError and BrokenPipeError once the process has ended."""
        self.idle, self._wait = False, _watch(what, bounds, time.monotonic())
        sizes = bounds.sizes
        limits = {"bytes": sizes.decoder_bytes, "seconds": sizes.decoder_s, "pixels": sizes.image_pixels}
        asked = {"task": task, "files": len(files), "limits": limits, "arguments": {"what": what, **arguments}}
        self._write(b"\0" + begin(asked, 0))
        for file in files:
            for chunk in _chunks(file):
                self._write(begin({}, len(chunk)))
                self._write(chunk)
            self._write(begin({}, 0))
        yield from self._read_answers()

    def close(self) -> None:
        """Kill the process, also while it decodes."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)

    def end(self, sizes: SizeLimits) -> str:
        """Return why the process has ended by itself."""
        try:
            status = self.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return "its decoder closed the pipe"
        allowed = f"limits.decoder_bytes of the configuration allows {sizes.decoder_bytes:,} bytes"
        if status == FULL:
            refused("limits.decoder_bytes")
            return f"it is larger than the memory it may take; {allowed}"
        number = status - 128 if status > 128 else -status
        name = signal.Signals(number).name if number in set(signal.Signals) else f"status {status}"
        return f"its decoder ended by {name}, of a damaged file or for want of memory; {allowed}"

    def _read_answers(self) -> Iterator[Answer]:
        while True:
            length, size = LENGTH.unpack(self._bytes(LENGTH.size))
            if length > HEADER_BYTES:
                raise EOFError
            header = json.loads(self._bytes(length))
            kind = header["kind"]
            if kind == "array":
                yield Pending(tuple(map(int, header["shape"])), str(header["dtype"]), self._fill)
                continue
            payload = self._bytes(size)
            if kind == "values":
                yield dict(header["values"])
            elif kind == "bytes":
                yield payload
            else:
                self.idle = True
                if kind == "error":
                    for key in COUNTED.intersection(header["refused"]):
                        refused(key)
                    raise NodeError(str(header["text"]))
                return

    def _bytes(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._fill(memoryview(buffer))
        return bytes(buffer)

    def _fill(self, view: memoryview) -> None:
        while view:
            self._wait(self._from, select.POLLIN)
            with suppress(BlockingIOError):
                count = os.readv(self._from, [view])
                if not count:
                    raise EOFError
                view = view[count:]

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._to, select.POLLOUT)
            with suppress(BlockingIOError):
                view = view[os.write(self._to, view[:CHUNK]) :]


_room = threading.Condition()
_taken: Counter[str] = Counter()
"""Decoders in use, by owner."""
idle_decoders: list[DecoderProcess] = []
"""Idle decoders, the last used first. A list's append and pop are atomic between threads."""


def take(what: str, bounds: DecoderLimits) -> DecoderProcess:
    with _room:
        while _taken[bounds.owner] == AT_ONCE or _taken.total() > AT_ONCE:
            _room.wait(LOOK_S)
            if bounds.stopped():
                raise NodeError(f"{what} is not read: nobody waits for it any more")
        _taken[bounds.owner] += 1
    while idle_decoders:
        decoder = idle_decoders.pop()
        if decoder.alive:
            return decoder
        decoder.close()
    try:
        return DecoderProcess()
    except BaseException:
        _leave(bounds.owner)
        raise


def give_back(decoder: DecoderProcess, owner: str) -> None:
    if decoder.alive:
        idle_decoders.append(decoder)
    else:
        decoder.close()
    _leave(owner)


def _leave(owner: str) -> None:
    with _room:
        _taken.subtract([owner])
        if not _taken[owner]:
            del _taken[owner]
        _room.notify_all()


def _watch(what: str, bounds: DecoderLimits, began_s: float) -> Callable[[int, int], None]:
    """Return a function that waits until a descriptor is ready. It raises NodeError after the time limit or
    cancellation.
    """

    def wait(descriptor: int, event: int) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        ready = False
        while not ready:
            ready = bool(poll.poll(LOOK_S * 1000))
            if bounds.stopped():
                raise NodeError(f"{what} is not read to its end: nobody waits for it any more")
            if time.monotonic() - began_s > bounds.within_s:
                refused("limits.decoder_s")
                key = "limits.decoder_s of the configuration allows"
                allowed = key if bounds.within_s == bounds.sizes.decoder_s else "is allowed here"
                raise NodeError(f"{what} takes longer to decode than {allowed}: {bounds.within_s:g} s")

    return wait


def _chunks(file: File) -> Iterator[bytes]:
    if isinstance(file, bytes):
        yield from (file[at : at + CHUNK] for at in range(0, len(file), CHUNK))
        return
    while chunk := file.read(CHUNK):
        yield chunk
