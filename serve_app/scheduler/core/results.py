"""The result index: which replica holds, and which task is computing, the values of a signature.

Values themselves stay on the replicas, each an LRU by bytes of its own; the index follows what they report. What an
output node showed (its ui dict) is small and stays here, so a finished job can be answered again by no replica at all.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Generic, TypeVar

from serve_app.graph.plan import TaskId

Value = TypeVar("Value")

UI_BYTES = 16 * 1024 * 1024
"""What all ui dicts that are remembered may take; what subgraphs made shows beside it may take as much."""
ENTRY_BYTES = 300
"""What remembering anything takes beside the value: its signature of 64 characters and its place in the order."""


_NOBODY: Set[str] = frozenset()


class Remembered(Generic[Value]):
    """Values by signature under a budget of bytes, least recently used out first; the newest always stays."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self._bytes = 0

    def __contains__(self, signature: str) -> bool:
        return signature in self._values

    def get(self, signature: str) -> Value | None:
        """Return the value and count it as used, or None."""
        if signature not in self._values:
            return None
        self._values.move_to_end(signature)
        return self._values[signature][0]

    def items(self) -> Iterator[tuple[str, Value]]:
        """Yield every value with its signature."""
        return ((signature, value) for signature, (value, _) in self._values.items())

    def pop(self, signature: str) -> None:
        """Forget a value if it is there."""
        if (entry := self._values.pop(signature, None)) is not None:
            self._bytes -= entry[1]

    def clear(self) -> None:
        """Forget every value."""
        self._values.clear()
        self._bytes = 0

    def put(self, signature: str, value: Value, size: int) -> None:
        """Remember a value in the place of an earlier one. size: the bytes that it takes."""
        self.pop(signature)
        self._bytes += (size := size + ENTRY_BYTES)
        self._values[signature] = (value, size)
        while self._bytes > self._budget_bytes and len(self._values) > 1:
            self._bytes -= self._values.popitem(last=False)[1][1]


class Results:
    """The index. ui_bytes: what the ui dicts that are remembered may take."""

    def __init__(self, ui_bytes: int = UI_BYTES) -> None:
        # In dicts for their order, so that what is chosen among holders does not depend on hashes.
        self._holders: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._held: defaultdict[str, dict[str, None]] = defaultdict(dict)
        # Pickled, what a job with one picture showed takes 0.4 kB, not 1.1, and few are ever asked for again.
        self._ui = Remembered[bytes](ui_bytes)
        self._made = Remembered[dict[str, bytes]](ui_bytes)
        self._owner: dict[str, TaskId] = {}
        self._claims: defaultdict[TaskId, set[str]] = defaultdict(set)

    def hold(self, replica_id: str, signature: str, ui: Mapping[str, Any] | None) -> None:
        """Note that the replica has the values; whoever was computing them no longer is."""
        self._holders[signature][replica_id] = None
        self._held[replica_id][signature] = None
        if ui is not None:
            shown = _pickled(ui)
            self._ui.put(signature, shown, len(shown))
        self._release(signature)

    def evict(self, replica_id: str, signatures: Iterable[str]) -> None:
        """Note that the replica has let go of these values."""
        held = self._held.get(replica_id, {})
        for signature in signatures:
            if signature in held:
                del held[signature]
                del self._holders[signature][replica_id]
                if not self._holders[signature]:
                    del self._holders[signature]

    def drop_replica(self, replica_id: str) -> None:
        """Forget all that a lost replica held."""
        self.evict(replica_id, list(self._held.get(replica_id, ())))
        self._held.pop(replica_id, None)

    def holders(self, signature: str) -> Set[str]:
        """Return the replicas that hold the values, as long as nothing changes; whoever has held them longest first."""
        return self._holders[signature].keys() if signature in self._holders else _NOBODY

    def ui(self, signature: str) -> Mapping[str, Any] | None:
        """Return what an output node of this signature showed, if it is remembered."""
        shown = self._ui.get(signature)
        return None if shown is None else pickle.loads(shown)

    def shown(self) -> Iterator[Mapping[str, Any]]:
        """Yield everything that output nodes had showed and was remembered when this was called."""
        return (ui for _, ui in self.remembered())

    def remembered(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield what `shown` does, each with its signature, of what a node made with its maker's. For any thread."""
        made = ((signature, ui) for signature, made in self._made.items() for ui in made.values())
        kept = [*self._ui.items(), *made]
        return ((signature, pickle.loads(ui)) for signature, ui in kept)

    def forget_ui(self, signatures: Iterable[str]) -> dict[str, list[str]]:
        """Forget what nodes of these signatures showed; return which of them each replica holds, as before."""
        held: defaultdict[str, list[str]] = defaultdict(list)
        for signature in signatures:
            self._ui.pop(signature)
            self._made.pop(signature)
            for replica_id in self._holders.get(signature, ()):
                held[replica_id].append(signature)
        return held

    def forget_all_ui(self) -> None:
        """Forget everything that nodes showed, so that it is made again."""
        self._ui.clear()
        self._made.clear()

    def add_made(self, signature: str, rest: str, ui: Mapping[str, Any]) -> None:
        """Note what a node showed that one of this signature made. rest: its id less its maker's."""
        made = self._made.get(signature) or {}
        if rest not in made:
            made[rest] = _pickled(ui)
            self._made.put(signature, made, sum(map(len, made.values())))

    def made(self, signature: str) -> Mapping[str, Mapping[str, Any]]:
        """Return what `add_made` noted."""
        return {rest: pickle.loads(ui) for rest, ui in (self._made.get(signature) or {}).items()}

    def known(self, signature: str) -> bool:
        """Whether the node need not run again."""
        return signature in self._ui or signature in self._holders

    def owner(self, signature: str) -> TaskId | None:
        """Return the task that is computing the values now."""
        return self._owner.get(signature)

    def owners(self) -> Mapping[str, TaskId]:
        """Return the tasks that are computing values now, by signature."""
        return self._owner

    def claim(self, signature: str, task_id: TaskId) -> None:
        """Note that the task computes the values from now on."""
        self._release(signature)
        self._owner[signature] = task_id
        self._claims[task_id].add(signature)

    def release(self, task_id: TaskId) -> set[str]:
        """Note that the task computes nothing any more; return what it leaves without an owner."""
        orphans = self._claims.pop(task_id, set())
        for signature in orphans:
            del self._owner[signature]
        return orphans

    def _release(self, signature: str) -> None:
        owner = self._owner.pop(signature, None)
        if owner is not None:
            self._claims[owner].discard(signature)


def _pickled(ui: Mapping[str, Any]) -> bytes:
    # A copy of its own size: a pickle is what is left of a larger block, and what is beside it stays a hole.
    return bytes(memoryview(pickle.dumps(ui)))
