"""The result index: which replicas have the values of a signature, and which task computes them.

The values stay on the replicas, in an LRU cache by bytes each; the index follows their reports. The ui dicts of output
nodes are small and stay here, so an equal job can be answered without any replica.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Generic, TypeVar

from serve_app.graph.plan import TaskId

Value = TypeVar("Value")

UI_BYTES = 16 * 1024 * 1024
"""The budget of cached ui dicts. Those of expanded nodes have a second one of this size."""
ENTRY_BYTES = 300
"""The overhead of an entry: its signature of 64 characters and its place in the order."""


_NO_REPLICAS: Set[str] = frozenset()


class Remembered(Generic[Value]):
    """An LRU cache of values by signature, with a budget in bytes. The newest value always stays."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self._bytes = 0

    def __contains__(self, signature: str) -> bool:
        return signature in self._values

    def get(self, signature: str) -> Value | None:
        """Return a value and mark it as used, or None."""
        if signature not in self._values:
            return None
        self._values.move_to_end(signature)
        return self._values[signature][0]

    def items(self) -> Iterator[tuple[str, Value]]:
        """Yield every value with its signature."""
        return ((signature, value) for signature, (value, _) in self._values.items())

    def pop(self, signature: str) -> None:
        """Remove a value if it is present."""
        if (entry := self._values.pop(signature, None)) is not None:
            self._bytes -= entry[1]

    def clear(self) -> None:
        """Remove every value."""
        self._values.clear()
        self._bytes = 0

    def put(self, signature: str, value: Value, size: int) -> None:
        """Add or replace a value. size: in bytes."""
        self.pop(signature)
        self._bytes += (size := size + ENTRY_BYTES)
        self._values[signature] = (value, size)
        while self._bytes > self._budget_bytes and len(self._values) > 1:
            self._bytes -= self._values.popitem(last=False)[1][1]


class Results:
    """The index. ui_bytes: the budget of cached ui dicts."""

    def __init__(self, ui_bytes: int = UI_BYTES) -> None:
        # Dicts rather than sets, so that the choice of a holder does not depend on hashes.
        self._holders: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._signatures: defaultdict[str, dict[str, None]] = defaultdict(dict)
        # Pickled, the ui dict of a job with one image takes 0.4 kB instead of 1.1, and few are read again.
        self._ui = Remembered[bytes](ui_bytes)
        self._made = Remembered[dict[str, bytes]](ui_bytes)
        self._owner: dict[str, TaskId] = {}
        self._claims: defaultdict[TaskId, set[str]] = defaultdict(set)

    def add_holder(self, replica_id: str, signature: str, ui: Mapping[str, Any] | None) -> None:
        """Record that a replica has the values, which ends the claim on them."""
        self._holders[signature][replica_id] = None
        self._signatures[replica_id][signature] = None
        if ui is not None:
            shown = _pickled(ui)
            self._ui.put(signature, shown, len(shown))
        self._release(signature)

    def evict(self, replica_id: str, signatures: Iterable[str]) -> None:
        """Record that a replica has evicted values."""
        present = self._signatures.get(replica_id, {})
        for signature in signatures:
            if signature in present:
                del present[signature]
                del self._holders[signature][replica_id]
                if not self._holders[signature]:
                    del self._holders[signature]

    def drop_replica(self, replica_id: str) -> None:
        """Forget the values of a lost replica."""
        self.evict(replica_id, list(self._signatures.get(replica_id, ())))
        self._signatures.pop(replica_id, None)

    def holders(self, signature: str) -> Set[str]:
        """Return the replicas that have the values, the longest first. A view: valid until the next change."""
        return self._holders[signature].keys() if signature in self._holders else _NO_REPLICAS

    def ui(self, signature: str) -> Mapping[str, Any] | None:
        """Return the cached ui dict of an output node, or None."""
        shown = self._ui.get(signature)
        return None if shown is None else pickle.loads(shown)

    def ui_dicts(self) -> Iterator[Mapping[str, Any]]:
        """Yield every cached ui dict as of this call."""
        return (ui for _, ui in self.remembered())

    def remembered(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield (signature, ui dict) of every cached one, of expanded nodes with their maker's. For any thread."""
        made = ((signature, ui) for signature, made in self._made.items() for ui in made.values())
        kept = [*self._ui.items(), *made]
        return ((signature, pickle.loads(ui)) for signature, ui in kept)

    def forget_ui(self, signatures: Iterable[str]) -> dict[str, list[str]]:
        """Forget the ui dicts of some signatures; return the signatures that each replica has, by replica."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for signature in signatures:
            self._ui.pop(signature)
            self._made.pop(signature)
            for replica_id in self._holders.get(signature, ()):
                found[replica_id].append(signature)
        return found

    def forget_all_ui(self) -> None:
        """Forget every ui dict, so that output nodes run again."""
        self._ui.clear()
        self._made.clear()

    def add_expanded(self, signature: str, rest: str, ui: Mapping[str, Any]) -> None:
        """Cache the ui dict of a node that a node of this signature expanded to. rest: its id without its maker's."""
        made = self._made.get(signature) or {}
        if rest not in made:
            made[rest] = _pickled(ui)
            self._made.put(signature, made, sum(map(len, made.values())))

    def expanded(self, signature: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the ui dicts of expanded nodes, by `rest` as for `add_expanded`."""
        return {rest: pickle.loads(ui) for rest, ui in (self._made.get(signature) or {}).items()}

    def known(self, signature: str) -> bool:
        """Whether the node's values or ui dict are known, so that it need not run."""
        return signature in self._ui or signature in self._holders

    def owner(self, signature: str) -> TaskId | None:
        """Return the task that computes the values, or None."""
        return self._owner.get(signature)

    def owners(self) -> Mapping[str, TaskId]:
        """Return the tasks that compute values, by signature."""
        return self._owner

    def claim(self, signature: str, task_id: TaskId) -> None:
        """Make a task the one that computes the values."""
        self._release(signature)
        self._owner[signature] = task_id
        self._claims[task_id].add(signature)

    def release(self, task_id: TaskId) -> set[str]:
        """End a task's claims; return the signatures that are left without an owner."""
        orphans = self._claims.pop(task_id, set())
        for signature in orphans:
            del self._owner[signature]
        return orphans

    def _release(self, signature: str) -> None:
        owner = self._owner.pop(signature, None)
        if owner is not None:
            self._claims[owner].discard(signature)


def _pickled(ui: Mapping[str, Any]) -> bytes:
    # A copy of the exact size: a pickle is the start of a larger block, whose rest would stay unused.
    return bytes(memoryview(pickle.dumps(ui)))
