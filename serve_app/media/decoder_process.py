"""The program of a decoder's process: it waits for files, and forks for each (`python -m
serve_app.media.decoder_process`).

The fork sets its limits, decodes the file, answers and exits. If it crashes, this process exits too, with a status that
tells how, and the parent starts another. See `decoder` for the parent.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from serve_app.errors import NodeError
from serve_app.limits import REFUSALS
from serve_app.media import audio, frames, pictures, video, video_file
from serve_app.media.wire import FULL, LENGTH, begin

Answer: TypeAlias = "dict[str, Any] | bytes | np.ndarray[Any, np.dtype[Any]]"
Task: TypeAlias = Callable[..., Iterator[Answer]]

TASKS: Mapping[str, Task] = {
    "frames": frames.decode_frames,
    "picture": pictures.first_frame,
    "painting": pictures.painting_frame,
    "preview": pictures.preview,
    "channel": pictures.channel,
    "with_alpha": pictures.with_alpha,
    "sound": audio.decode_audio,
    "facts": video.yield_facts,
    "video": video.decode_video,
    "rewrite": video_file.rewrite,
}
"""The tasks, functions of files and keyword arguments: at least `what`, the file's name in messages, and `pixels`."""

STACKS_BYTES = 32 * 1024 * 1024
"""Address space that codec threads reserve per CPU without using it."""
NO_MEMORY = (
    "{what} needs more memory to decode than limits.decoder_bytes of the configuration allows, {allowed:,} bytes"
)


def main() -> None:
    """Serve until the pipe closes."""
    _warm_up()
    gc.freeze()
    while os.read(0, 1):
        if (child := os.fork()) == 0:
            _answer()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            _end(os.waitstatus_to_exitcode(status))
    _end(0)


def _warm_up() -> None:
    """Import the libraries that decoding needs, so that no fork has to."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    list(frames.decode_frames(buffer.getvalue(), "", 1))


def _end(code: int) -> None:
    shutil.rmtree(os.getcwd(), ignore_errors=True)
    os._exit(128 - code if code < 0 else code)


def _answer() -> None:
    with os.fdopen(0, "rb", closefd=False) as source, os.fdopen(1, "wb", closefd=False) as target:
        asked, _ = _read(source)
        limits, arguments = asked["limits"], asked["arguments"]
        _limit(limits["bytes"], limits["seconds"])
        try:
            files = [_file(source) for _ in range(asked["files"])]
        except MemoryError:
            os._exit(FULL)
        try:
            for answer in TASKS[asked["task"]](*files, pixels=limits["pixels"], **arguments):
                _send(target, answer)
            _send_answer(target, {"kind": "end"})
        except NodeError as error:
            _send_answer(target, {"kind": "error", "text": str(error), "refused": list(REFUSALS)})
        except MemoryError:
            text = NO_MEMORY.format(what=arguments["what"], allowed=limits["bytes"])
            _send_answer(target, {"kind": "error", "text": text, "refused": ["limits.decoder_bytes"]})
        except Exception as error:
            text = f"{arguments['what']} cannot be read: {type(error).__name__}: {error}"
            _send_answer(target, {"kind": "error", "text": text, "refused": []})


def _limit(most_bytes: int, seconds: float) -> None:
    processors = os.cpu_count() or 1
    with contextlib.suppress(OSError):  # only Linux has it
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _soften(resource.RLIMIT_AS, now + most_bytes + STACKS_BYTES * processors)
    # The parent enforces the time limit; this limit is for a fork whose parent has died.
    _soften(resource.RLIMIT_CPU, int(seconds * processors) + 1)
    _soften(resource.RLIMIT_CORE, 0)
    # The first process that the kernel's OOM killer chooses.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _soften(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _file(source: Any) -> bytes:
    chunks = []
    while chunk := _read(source)[1]:
        chunks.append(chunk)
    return b"".join(chunks)


def _read(source: Any) -> tuple[dict[str, Any], bytes]:
    length, size = LENGTH.unpack(_exactly(source, LENGTH.size))
    return json.loads(_exactly(source, length)), _exactly(source, size)


def _exactly(source: Any, size: int) -> bytes:
    data: bytes = source.read(size)
    if len(data) < size:
        os._exit(1)
    return data


def _send(target: Any, answer: Answer) -> None:
    if isinstance(answer, dict):
        _send_answer(target, {"kind": "values", "values": answer})
    elif isinstance(answer, bytes):
        _send_answer(target, {"kind": "bytes"}, answer)
    else:
        array = np.ascontiguousarray(answer)
        _send_answer(target, {"kind": "array", "dtype": array.dtype.name, "shape": array.shape}, array.data.cast("B"))


def _send_answer(target: Any, header: dict[str, Any], data: bytes | memoryview = b"") -> None:
    target.write(begin(header, len(data) if header["kind"] == "bytes" else 0))
    target.write(data)
    target.flush()


if __name__ == "__main__":
    main()
