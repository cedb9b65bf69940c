"""What clients are told about a job: one ordered stream of events per job.

An event is data. `seq` is the cursor: it only grows within a job, also across a restart of the scheduler, because
its upper bits are the scheduler's epoch. Dialects in `api` render events; nothing here knows a wire format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

JobState: TypeAlias = Literal["queued", "running", "success", "error", "cancelled"]
"""Where a job stands; the last three are for good."""
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
"""The kinds after which a job's stream holds nothing more."""

VALUE_BYTES = 64
"""What any value in an event counts, beside its text."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Where and why a job ended without success; one that was cancelled has the where alone.

    node: as submitted, "" for none. exception_type, message, traceback: of what was raised. executed: the nodes that
    had run. current_inputs: what the node was given, as text. current_outputs: nodes whose values were known at start.
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
        """Return the failure of a job that ends at no node of it."""
        return cls(exception_type=type(error).__name__, message=str(error))

    def to_json(self) -> dict[str, Any]:
        """Return the members that say something; `from_json` undoes it."""
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

    data by kind: cached {"nodes": [ids]}; executing {"node"}; progress {"node", "value", "max"};
    finished {"node"}, of a node that is no output; executed {"node", "output": ui dict}, of one that is;
    blocked {"node", "class_type", "message"}: a node was passed over, and the job goes on;
    preview {"node", "image"}: what a node has come to, a JPEG that is elsewhere; not kept with the job;
    message {"node", "type", "data"}: a node's own words for its client; without a node, and of job "", a pack's;
    error, cancelled: a Failure as JSON; the others {}. A node that another one expanded into may name "display_node",
    "parent_node" and "real_node" too.
    at_s: Unix time in seconds. bytes: what its data counts where events are kept.
    """

    job_id: str
    seq: int
    kind: Kind
    at_s: float
    data: Mapping[str, Any] = field(default_factory=dict)
    bytes: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Once, as a job's stream and its client's feed both count it, and count it out again.
        object.__setattr__(self, "bytes", data_bytes(self.data))

    @property
    def last(self) -> bool:
        """Whether nothing follows this event in its job's stream."""
        return self.kind in ENDINGS


def data_bytes(data: Any, most: float = math.inf) -> int:
    """Return about how many bytes a JSON value takes in memory; of one that takes more than `most`, only some more."""
    total = 0
    stack = [data]
    while stack and total <= most:
        item = stack.pop()
        total += VALUE_BYTES
        # By their own types: every event is counted, and to ask whether something is a Mapping takes ten times as long.
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
