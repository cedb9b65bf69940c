"""A failed node as what leaves the replica: with no credential of the job's, and no path of the server's."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from typing import Any

import torch

from serve_app.execution.contained import said
from serve_app.graph.plan import Task
from serve_app.scheduler.protocol.messages import TaskFailed
from serve_app.store.tenants.credentials import scrubbed

_FILE = re.compile(r'(?m)^(\s*File ")([^"\n]*)(?=", line )')
_PARTS = 3
"""How much of a file's path tells a reader which it is."""


_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|Cannot allocate memory")

CHARACTERS, LINES = 20_000, 1000
"""How much of an exception's text, and of its traceback, is told: it may hold any value that its node was given."""


def failed(
    task: Task, node_id: str, class_type: str, cause: BaseException, inputs: Mapping[str, Any] | None = None
) -> TaskFailed:
    """Return the report of a node that raised; node_id "": of the task as a whole. inputs: what it was given."""
    return TaskFailed(
        task_id=task.id,
        node_id=node_id,
        class_type=class_type,
        exception_type=_full_name(type(cause)),
        message=scrubbed(said(cause)[:CHARACTERS], task.extra_data),
        traceback=tuple(
            scrubbed(named(line[:CHARACTERS]), task.extra_data) for line in traceback.format_exception(cause)[:LINES]
        ),
        inputs=scrubbed(inputs or {}, task.extra_data),
        out_of_memory=_out_of_memory(cause),
    )


def _out_of_memory(cause: BaseException) -> bool:
    """Whether the process could get no memory; a device's is the engine's to share out."""
    if isinstance(cause, torch.OutOfMemoryError):
        return False
    # Torch and safetensors raise a RuntimeError with the system's words.
    words = isinstance(cause, RuntimeError | OSError) and _NO_MEMORY.search(said(cause)[:CHARACTERS]) is not None
    return isinstance(cause, MemoryError) or words


def named(line: str) -> str:
    """Return a line of a traceback with its files named by the ends of their paths."""
    return _FILE.sub(lambda found: found[1] + "/".join(found[2].replace("\\", "/").split("/")[-_PARTS:]), line)


def _full_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
