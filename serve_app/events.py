"""The events of a job that clients see: one ordered stream per job.

An event is data. `seq` is the cursor: it only grows within a job, also across a restart of the scheduler, because its
upper bits are the scheduler's epoch. Dialects in `api` render events; nothing here knows a wire format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

JobState: TypeAlias = Literal["queued", "running", "success", "error", "cancelled"]
"""The state of a job; the last three are final."""
Ending: TypeAlias = Literal["success", "error", "cancelled"]

Kind: TypeAlias = Literal[
    "queued",
    "started",
    "cached",
    "executing",
    "progress",
    "finished",
    "executed",
    "blocked",
    "message",
    "preview",
    "success",
    "error",
    "cancelled",
]

ENDINGS: frozenset[str] = frozenset({"success", "error", "cancelled"})
"""The kinds that end a job's stream."""

VALUE_BYTES = 64
"""The size that any value in an event counts, beside its text."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Where and why a job ended without success; for a cancelled job only where.

    node: as submitted, "" for none. exception_type, message, traceback: of the exception. executed: the nodes that had
    run. current_inputs: the node's inputs as text. current_outputs: nodes whose values were cached at the start.
    """

    node: str = ""
    class_type: str = ""
    exception_type: str = ""
    message: str = ""
    traceback: tuple[str, ...] = ()
    executed: tuple[str, ...] = ()
    current_inputs: Mapping[str, Any] = field(default_factory=dict)
    current_outputs: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return the failure of a job that did not fail at a node."""
        return cls(exception_type=type(error).__name__, message=str(error))

    def to_json(self) -> dict[str, Any]:
        """Return the non-empty members; `from_json` is the inverse."""
        given = {name: getattr(self, name) for name in self.__slots__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Failure:
        """Rebuild a failure from the data of its event, or from its row in the database."""
        known: dict[str, Any] = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**{**known, **lists})


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a job.

    data by kind: cached {"nodes": [ids]}; executing {"node"}; progress {"node", "value", "max"}; finished {"node"}, of
    a node that is no output; executed {"node", "output": ui dict}, of one that is; blocked {"node", "class_type",
    "message"}: a node was skipped, and the job goes on; preview {"node", "image"}: a reference to a JPEG; not stored
    with the job; message {"node", "type", "data"}: a node's own message for its client; without a node, and of job "",
    a pack's; error, cancelled: a Failure as JSON; the others {}. A node that another one expanded into may name
    "display_node", "parent_node" and "real_node" too. at_s: Unix time in seconds. bytes: the size of its data, for
    limits.
    """

    job_id: str
    seq: int
    kind: Kind
    at_s: float
    data: Mapping[str, Any] = field(default_factory=dict)
    bytes: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Computed once, as a job's stream and its client's feed both add and subtract it.
        object.__setattr__(self, "bytes", data_bytes(self.data))

    @property
    def last(self) -> bool:
        """Whether nothing follows this event in its job's stream."""
        return self.kind in ENDINGS


def data_bytes(data: Any, most: float = math.inf) -> int:
    """Return the approximate size of a JSON value in memory, in bytes; counting stops above `most`."""
    total = 0
    stack = [data]
    while stack and total <= most:
        item = stack.pop()
        total += VALUE_BYTES
        # By concrete types: every event is counted, and an isinstance check for Mapping takes ten times as long.
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif isinstance(item, bytes):
            total += len(item)
    return total
