"""Measured durations in seconds: loading a model file, and one step with it, for each pool.

A pool's replicas are equal. Exponential moving averages: `NEWEST` is the weight of the newest value. Pure; the shell
stores changed averages in the database and passes them in after a restart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from serve_app.store.database.costs import Cost, CostKind

NEWEST = 0.2
"""The weight of the newest duration. The first ones have equal weights."""
STEP_S = 1.0
"""The assumed duration of a step before any is measured."""


class Costs:
    """The averages of every pool. known: stored ones of earlier epochs."""

    def __init__(self, known: Iterable[Cost] = ()) -> None:
        self._costs: dict[tuple[str, CostKind, str], Cost] = {}
        self._sums: defaultdict[tuple[str, CostKind], float] = defaultdict(float)
        self._counts: defaultdict[tuple[str, CostKind], int] = defaultdict(int)
        self._changed: dict[tuple[str, CostKind, str], Cost] = {}
        for cost in known:
            self._put(cost)

    def load_s(self, pool: str, file: str) -> float:
        """Return the loading time of a model file; for an unknown one the pool's average, else 0."""
        return self._seconds(pool, "load", file, 0.0)

    def step_s(self, pool: str, file: str) -> float:
        """Return how long a step with a model file takes a slot; for an unknown one the pool's average, else STEP_S."""
        return self._seconds(pool, "step", file, STEP_S)

    def share_s(self, pool: str, file: str) -> float:
        """Return the device time of a step with a model file. Tasks on a device share it equally."""
        return self._seconds(pool, "share", file, self.step_s(pool, file))

    def loads(self, pool: str) -> bool:
        """Whether a replica of the pool has ever loaded a model file."""
        return self._counts[pool, "load"] > 0

    def heaviest(self, pool: str, files: Sequence[str]) -> str:
        """Return the file with the longest loading time, "" if there is none."""
        return max(files, key=lambda file: self.load_s(pool, file), default="")

    def learn_loads(self, pool: str, times: Mapping[str, float]) -> None:
        """Add loading times of model files."""
        for file, seconds in times.items():
            self._learn(pool, "load", file, seconds)

    def learn_steps(self, pool: str, file: str, steps: int, seconds: float) -> None:
        """Add a task's duration without loading. file: the model file of its queue."""
        self._learn(pool, "step", self._known(pool, file), seconds / steps)

    def learn_shares(self, pool: str, file: str, steps: int, seconds: float) -> None:
        """Add the device time of a task that loaded nothing. file: as for `learn_steps`."""
        self._learn(pool, "share", self._known(pool, file), seconds / steps)

    def take_changed(self) -> list[Cost]:
        """Return the averages that changed since the last call."""
        changed, self._changed = list(self._changed.values()), {}
        return changed

    def _known(self, pool: str, file: str) -> str:
        # A name that no replica has loaded is any text of a client: unbounded.
        return file if (pool, "load", file) in self._costs else ""

    def _learn(self, pool: str, kind: CostKind, name: str, seconds: float) -> None:
        earlier = self._costs.get((pool, kind, name), Cost(pool, kind, name, 0.0, 0))
        weight = max(NEWEST, 1 / (earlier.samples + 1))
        average_s = earlier.seconds + weight * (max(0.0, seconds) - earlier.seconds)
        cost = Cost(pool, kind, name, average_s, earlier.samples + 1)
        self._put(cost)
        self._changed[pool, kind, name] = cost

    def _put(self, cost: Cost) -> None:
        key = (cost.pool, cost.kind, cost.name)
        earlier = self._costs.get(key)
        self._costs[key] = cost
        self._sums[cost.pool, cost.kind] += cost.seconds - (0.0 if earlier is None else earlier.seconds)
        self._counts[cost.pool, cost.kind] += earlier is None

    def _seconds(self, pool: str, kind: CostKind, name: str, unknown_s: float) -> float:
        if (cost := self._costs.get((pool, kind, name))) is not None:
            return cost.seconds
        count = self._counts.get((pool, kind), 0)
        return self._sums[pool, kind] / count if count else unknown_s
