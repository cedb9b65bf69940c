"""Reports of failed nodes, without the job's credentials and the server's paths."""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import Mapping
from typing import Any

import torch

from serve_app.execution.contained import safe_str
from serve_app.graph.plan import Task
from serve_app.scheduler.protocol.messages import TaskFailed
from serve_app.store.tenants.credentials import scrubbed

_FILE = re.compile(r'(?m)^(\s*File ")([^"\n]*)(?=", line )')
_PARTS = 3
"""How many parts of a file's path are kept."""


_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|Cannot allocate memory"
    # oneDNN's, which says no more, where its code or scratch memory cannot be allocated.
    r"|could not create a primitive$"
)

CHARACTERS, LINES = 20_000, 1000
"""Limits of an exception's text, and of its traceback: they may contain any value of the node's inputs."""


def state_of(error: BaseException | None) -> str:
    """Return how a task ended, for the log."""
    if error is None:
        return "success"
    return "stopped" if isinstance(error, asyncio.CancelledError) else f"failed ({type(error).__name__})"


def failed(
    task: Task, node_id: str, class_type: str, cause: BaseException, inputs: Mapping[str, Any] | None = None
) -> TaskFailed:
    """Return the report of a node that raised; node_id "" is the task as a whole. inputs: the node's."""
    return TaskFailed(
        task_id=task.id,
        node_id=node_id,
        class_type=class_type,
        exception_type=_full_name(type(cause)),
        message=scrubbed(safe_str(cause)[:CHARACTERS], task.extra_data),
        traceback=tuple(
            scrubbed(with_short_paths(line[:CHARACTERS]), task.extra_data)
            for line in traceback.format_exception(cause)[:LINES]
        ),
        inputs=scrubbed(inputs or {}, task.extra_data),
        out_of_memory=_out_of_memory(cause),
    )


def _out_of_memory(cause: BaseException) -> bool:
    """Whether the process ran out of host memory; the engine handles a device's memory."""
    if isinstance(cause, torch.OutOfMemoryError):
        return False
    # Torch and safetensors raise a RuntimeError with the system's message.
    words = isinstance(cause, RuntimeError | OSError) and _NO_MEMORY.search(safe_str(cause)[:CHARACTERS]) is not None
    return isinstance(cause, MemoryError) or words


def with_short_paths(line: str) -> str:
    """Return a line of a traceback with its paths shortened to their ends."""
    return _FILE.sub(lambda found: found[1] + "/".join(found[2].replace("\\", "/").split("/")[-_PARTS:]), line)


def _full_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
