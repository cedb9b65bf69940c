"""What work takes, in seconds, as it is learned: loading a model file, and a step with it, on each kind of replica.

A pool is a kind of replica, since its replicas are equal. Averages that forget: `NEWEST` is the weight of the newest.
Pure; the shell keeps what has changed in the database, and gives it back after a restart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from serve_app.store.database.costs import Cost, Kind

NEWEST = 0.2
"""How much the newest duration counts; the first ones count as much as each other."""
STEP_S = 1.0
"""What a step is taken to last where nothing has been learned."""


class Costs:
    """The averages of one scheduler's life. known: those of earlier ones."""

    def __init__(self, known: Iterable[Cost] = ()) -> None:
        self._costs: dict[tuple[str, Kind, str], Cost] = {}
        self._sums: defaultdict[tuple[str, Kind], float] = defaultdict(float)
        self._counts: defaultdict[tuple[str, Kind], int] = defaultdict(int)
        self._changed: dict[tuple[str, Kind, str], Cost] = {}
        for cost in known:
            self._put(cost)

    def load_s(self, pool: str, file: str) -> float:
        """Return how long a model file takes to load; of one that is unknown, what others of the pool take, else 0."""
        return self._seconds(pool, "load", file, 0.0)

    def step_s(self, pool: str, file: str) -> float:
        """Return how long a step with a model file takes one slot; of one that is unknown, what others take."""
        return self._seconds(pool, "step", file, STEP_S)

    def share_s(self, pool: str, file: str) -> float:
        """Return how long a step with a model file has a device, of which each task on it has an equal share."""
        return self._seconds(pool, "share", file, self.step_s(pool, file))

    def loads(self, pool: str) -> bool:
        """Whether replicas of the pool load model files, as far as is known."""
        return self._counts[pool, "load"] > 0

    def heaviest(self, pool: str, files: Sequence[str]) -> str:
        """Return the file that takes longest to load, the first of several; "" if there is none."""
        return max(files, key=lambda file: self.load_s(pool, file), default="")

    def learn_loads(self, pool: str, times: Mapping[str, float]) -> None:
        """Take in how long model files took to load."""
        for file, seconds in times.items():
            self._learn(pool, "load", file, seconds)

    def learn_steps(self, pool: str, file: str, steps: int, seconds: float) -> None:
        """Take in how long a task took, without loading. file: the model file it was served by."""
        self._learn(pool, "step", self._known(pool, file), seconds / steps)

    def learn_shares(self, pool: str, file: str, steps: int, seconds: float) -> None:
        """Take in how long a task had its device, loading nothing. file: as for `learn_steps`."""
        self._learn(pool, "share", self._known(pool, file), seconds / steps)

    def take_changed(self) -> list[Cost]:
        """Return what has been learned since this was last asked."""
        changed, self._changed = list(self._changed.values()), {}
        return changed

    def _known(self, pool: str, file: str) -> str:
        # A name that nothing was loaded by is a client's text; there is no end of those.
        return file if (pool, "load", file) in self._costs else ""

    def _learn(self, pool: str, kind: Kind, name: str, seconds: float) -> None:
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

    def _seconds(self, pool: str, kind: Kind, name: str, unknown_s: float) -> float:
        if (cost := self._costs.get((pool, kind, name))) is not None:
            return cost.seconds
        count = self._counts.get((pool, kind), 0)
        return self._sums[pool, kind] / count if count else unknown_s
