"""Which weights are resident: least recently used are evicted first, within a budget of bytes.

A `Hold` keeps weights in use until it is closed, and weights in use are not evicted. A hold on weights that are absent
reserves their room, so that nobody else is given it while they are loaded. While a hold is open whose forwards need
more than they are left beside the budget, weights may take less. It knows neither files nor networks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from serve_app import log
from serve_app.errors import WeightsFreedError
from serve_app.models.lora.layers import LoraSet
from serve_app.models.weights.loading import Loaded
from serve_app.models.weights.memory_plan import weights_left
from serve_app.models.weights.recipes import Need

_log = log.get("models")

UNREAD = 1000
"""Limit on recorded load times that are not collected."""


@dataclass(slots=True, eq=False)
class ResidentWeights:
    """The weights of one part, or of a LoRA set on it. own_bytes: without those of `base` and `loras`.

    base: the key of the part whose tensors this one shares. remarks: what users should know of its files. model: what
    callers use, once it was asked for. holds: those that are open on it.
    """

    loaded: Loaded
    name: str
    own_bytes: int
    base: Hashable = None
    loras: LoraSet | None = None
    remarks: tuple[str, ...] = ()
    model: Any = None
    holds: set[Hold] = field(default_factory=set)

    @property
    def nbytes(self) -> int:
        return self.own_bytes + (self.loras.nbytes if self.loras is not None else 0)

    @property
    def needed_bytes(self) -> int:
        """Bytes without merged LoRA weights, which are optional."""
        return self.own_bytes + (self.loras.needed_bytes if self.loras is not None else 0)

    @property
    def in_use(self) -> bool:
        return len(self.holds) > 0


class Hold:
    """Keeps weights in use, and room for those that are absent, until it is closed; a context manager.

    need: which weights. Any thread may close it, once the device has done all that uses them.
    """

    def __init__(self, need: Need, residency: Residency) -> None:
        self.need = need
        self.closed = False
        self._residency = residency

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let its weights be evicted, unless another hold keeps them. Closing it again does nothing."""
        with self._residency.lock:
            if not self.closed:
                self.closed = True
                self._residency.close(self)

    def share(self) -> Hold:
        """Return another hold of the same weights, which is closed by itself. Errors: WeightsFreedError."""
        with self._residency.lock:
            self.check()
            made = Hold(self.need, self._residency)
            self._residency.share(self, made)
            return made

    def check(self) -> None:
        """Errors: WeightsFreedError once it is closed."""
        if self.closed:
            names = ", ".join(recipe.name for recipe in self.need.recipes) or "weights"
            raise WeightsFreedError(f"{names} are asked for by a hold that is closed")


@dataclass(slots=True)
class _Expected:
    """Room for weights that are absent, kept while any of the holds on them is open."""

    nbytes: int
    holds: set[Hold] = field(default_factory=set)


class Residency:
    """The weights that are resident. Whoever changes it takes its `lock`, which is never kept over a load.

    forwards_bytes: what forwards are left beside the budget.
    """

    def __init__(self, budget_bytes: int, forwards_bytes: int = 0) -> None:
        self.lock = Lock()
        self.budget_bytes = budget_bytes
        self.forwards_bytes = forwards_bytes
        self.loads = self.evictions = self.releases = 0
        self.seconds = 0.0
        self.times: deque[tuple[str, float]] = deque(maxlen=UNREAD)
        """What was loaded, with the seconds it took, for whoever takes it out."""
        self._evicted: list[ResidentWeights] = []
        self.resident: dict[Hashable, ResidentWeights] = {}
        """What is resident, least recently used first."""
        self._expected: dict[Hashable, _Expected] = {}
        self._open: set[Hold] = set()
        """The holds that are open on anything here."""

    @property
    def nbytes(self) -> int:
        """How many bytes are resident. It may be asked at any time, also while weights are loaded."""
        return sum(resident.nbytes for resident in [*self.resident.values()])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what is resident, least recently used first. It may be asked at any time."""
        return tuple(resident.name for resident in [*self.resident.values()])

    def get(self, key: Hashable, hold: Hold) -> ResidentWeights | None:
        """Return what is resident under a key, kept by a hold and the most recently used from now on, or None.

        Errors: WeightsFreedError where the hold is closed.
        """
        hold.check()
        if (resident := self.resident.pop(key, None)) is not None:
            self.resident[key] = resident
            resident.holds.add(hold)
            if resident.base is not None:
                # The part comes after what was made of it, which is no use without it.
                self.get(resident.base, hold)
        return resident

    def close(self, hold: Hold) -> None:
        """Have a hold keep nothing, neither weights nor room for them."""
        for resident in self.resident.values():
            resident.holds.discard(hold)
        for key in list(self._expected):
            self.give_up(key, hold)
        self._open.discard(hold)

    def share(self, hold: Hold, other: Hold) -> None:
        """Have another hold keep what a hold keeps."""
        resident = [resident.holds for resident in self.resident.values()]
        for holds in (*resident, *(expected.holds for expected in self._expected.values())):
            if hold in holds:
                holds.add(other)
        self._open.add(other)

    def put(self, key: Hashable, resident: ResidentWeights, took_s: float) -> None:
        """Take in what was loaded in `took_s` seconds; the holds that expect it keep it from now on."""
        self.resident[key] = resident
        if (expected := self._expected.pop(key, None)) is not None:
            for hold in expected.holds:
                self.get(key, hold)
        self.loads += 1
        self.seconds += took_s
        self.times.append((resident.name, took_s))

    def expect(self, nbytes: Mapping[Hashable, int], hold: Hold) -> None:
        """Have a hold keep weights: those that are resident, and room for those that are not."""
        self._open.add(hold)
        for key in nbytes:
            self.get(key, hold)
        absent = [key for key in nbytes if key not in self.resident]
        self.make_room(sum(nbytes[key] for key in absent if key not in self._expected))
        for key in absent:
            self._expected.setdefault(key, _Expected(nbytes[key])).holds.add(hold)

    def give_up(self, key: Hashable, hold: Hold) -> None:
        """Have a hold keep no room for absent weights; it is free once no other hold does."""
        if (expected := self._expected.get(key)) is not None:
            expected.holds.discard(hold)
            if not expected.holds:
                del self._expected[key]

    def has_all(self, need: Need) -> bool:
        """Whether all that is needed is resident."""
        return all(key in self.resident for key in need.nbytes)

    def remarks(self, key: Hashable) -> tuple[str, ...]:
        """Return the remarks on what is resident under a key; none if nothing is. It may be asked at any time."""
        resident = self.resident.get(key)
        return () if resident is None else resident.remarks

    def fits(self, need: Need) -> bool:
        """Whether all needed weights can be resident at once within the budget, beside the largest forward.

        True if it is resident, if evicting what nobody uses makes room, or if nothing is in use: what exceeds the
        budget by itself is loaded all the same.
        """
        in_use = sum(resident.needed_bytes for resident in self.resident.values() if resident.in_use)
        in_use += self.reserved_bytes
        absent, left = self._absent(need), self._left_bytes(need.activation_bytes)
        if not in_use or (not absent and left == self._left_bytes()):
            return True
        wanted = [self.resident[key] for key in need.nbytes if key in self.resident]
        idle = sum(resident.needed_bytes for resident in wanted if not resident.in_use)
        return in_use + idle + sum(absent) <= left

    def _left_bytes(self, activation_bytes: int = 0) -> int:
        """Return what weights may take beside the forwards of all open holds, and one of `activation_bytes`."""
        largest = max((hold.need.activation_bytes for hold in self._open), default=0)
        return weights_left(self.budget_bytes, self.forwards_bytes, max(largest, activation_bytes))

    def has_room_to_prefetch(self, need: Need, spared: Callable[[str], bool]) -> bool:
        """Whether all that is needed fits the budget beside what is in use, what is coming, and idle weights by name.

        Those idle ones are then evicted last.
        """
        kept = [key for key, resident in self.resident.items() if not resident.in_use and spared(resident.name)]
        for key in kept:
            self.resident[key] = self.resident.pop(key)
        stays = sum(r.nbytes for key, r in self.resident.items() if r.in_use or key in kept or key in need.nbytes)
        return stays + self.reserved_bytes + sum(self._absent(need)) <= self._left_bytes(need.activation_bytes)

    def _absent(self, need: Need) -> list[int]:
        """Return the bytes of each of the needed weights that have neither been loaded nor been given room."""
        return [n for key, n in need.nbytes.items() if key not in self.resident and key not in self._expected]

    def has(self, key: Hashable) -> bool:
        """Whether something is resident under a key. It may be asked at any time."""
        return key in self.resident

    def has_room(self, nbytes: int) -> bool:
        """Whether `nbytes` are free without evicting anything."""
        return self.nbytes + self.reserved_bytes + nbytes <= self._left_bytes()

    def make_room(self, nbytes: int) -> None:
        """Evict least recently used weights until nbytes fit the budget, or all that is left is in use."""
        self._evict(lambda: self.has_room(nbytes))

    def release(self, nbytes: int | None = None) -> int:
        """Evict what is not in use, least recently used first, until `nbytes` are free; None: all of it.

        Return how many bytes were freed.
        """
        before, evictions = self.nbytes, self.evictions
        self._evict(lambda: nbytes is not None and before - self.nbytes >= nbytes)
        self.releases += self.evictions - evictions
        return before - self.nbytes

    def _evict(self, enough: Callable[[], bool]) -> None:
        if not enough():
            for loras in [resident.loras for resident in self.resident.values()]:
                if loras is not None:
                    loras.unmerge()
        unused = [key for key, resident in self.resident.items() if not resident.in_use]
        while unused and not enough():
            key = unused.pop(0)
            for going in [key, *(other for other, resident in self.resident.items() if resident.base == key)]:
                if (evicted := self.resident.pop(going, None)) is not None:
                    _log.info("evicted %s: mb=%d", evicted.name, evicted.nbytes >> 20)
                    self.evictions += 1
                    self._evicted.append(evicted)

    def evicted(self) -> list[ResidentWeights]:
        """Return what has been evicted since the last call; the caller frees it."""
        evicted, self._evicted = self._evicted, []
        return evicted

    @property
    def reserved_bytes(self) -> int:
        """How much room is kept for weights that are not resident yet."""
        return sum(expected.nbytes for expected in self._expected.values())
