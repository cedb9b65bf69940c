"""What weights are held: least recently used out first, within a budget of bytes. It knows neither files nor networks.

What is lent is in use as long as a caller holds it, and what is in use is not evicted. Weights that are to be loaded
have their room from the moment that somebody holds them, so that nobody else is given it meanwhile.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app import log
from serve_app.models.lora.layers import LoraSet
from serve_app.models.weights.loading import Loaded
from serve_app.models.weights.recipes import Need

_log = log.get("models")

UNREAD = 1000
"""Loads kept for a reader that does not come."""


@dataclass(slots=True, eq=False)
class ResidentWeights:
    """One part's weights, or what a set of LoRAs makes of them. own_bytes: beside those of `base` and `loras`.

    base: the key of the part whose tensors this one shares. remarks: what users should know of its files.
    """

    loaded: Loaded
    name: str
    own_bytes: int
    base: Hashable = None
    loras: LoraSet | None = None
    remarks: tuple[str, ...] = ()
    model: weakref.ref[Any] | None = None
    users: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)

    @property
    def nbytes(self) -> int:
        return self.own_bytes + (self.loras.nbytes if self.loras is not None else 0)

    @property
    def needed_bytes(self) -> int:
        """Without merged weights that it can do without."""
        return self.own_bytes + (self.loras.needed_bytes if self.loras is not None else 0)

    @property
    def in_use(self) -> bool:
        return len(self.users) > 0


class Hold:
    """Keeps weights in use as long as anyone has it, and room for those that are absent. need: what they are."""

    __slots__ = ("__weakref__", "need")

    def __init__(self, need: Need) -> None:
        self.need = need


@dataclass(slots=True)
class _Expected:
    """Room for weights that are absent. users: who wants them; without any, it is given up."""

    nbytes: int
    users: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)


class Residency:
    """The weights that are held. Its callers see to it that one at a time changes it."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.loads = self.evictions = self.releases = 0
        self.seconds = 0.0
        self.times: deque[tuple[str, float]] = deque(maxlen=UNREAD)
        """What was loaded, with the seconds it took, for whoever takes it out."""
        self._evicted: list[ResidentWeights] = []
        self._held: dict[Hashable, ResidentWeights] = {}
        self._expected: dict[Hashable, _Expected] = {}

    @property
    def nbytes(self) -> int:
        """How much is held. It may be asked at any time, also while weights are loaded."""
        return sum(resident.nbytes for resident in [*self._held.values()])

    @property
    def names(self) -> tuple[str, ...]:
        """What is held, least recently used first. It may be asked at any time."""
        return tuple(resident.name for resident in [*self._held.values()])

    def get(self, key: Hashable, user: object) -> ResidentWeights | None:
        """Return what is held under a key, in use by `user` and the most recently used from now on, or None."""
        if (resident := self._held.pop(key, None)) is not None:
            self._held[key] = resident
            resident.users.add(user)
            if resident.base is not None:
                # The part comes after what was made of it, which is no use without it.
                self.get(resident.base, user)
        return resident

    def put(self, key: Hashable, resident: ResidentWeights, took_s: float) -> None:
        """Hold what was loaded in so many seconds; those who expect it use it from now on."""
        self._held[key] = resident
        if (expected := self._expected.pop(key, None)) is not None:
            for user in expected.users:
                self.get(key, user)
        self.loads += 1
        self.seconds += took_s
        self.times.append((resident.name, took_s))

    def expect(self, nbytes: Mapping[Hashable, int], user: object) -> None:
        """Have weights in use by `user` from now on: those that are held, and room for those that are not."""
        for key in nbytes:
            self.get(key, user)
        absent = [key for key in nbytes if key not in self._held]
        self.make_room(sum(nbytes[key] for key in absent if key not in self._coming))
        for key in absent:
            self._expected.setdefault(key, _Expected(nbytes[key])).users.add(user)

    def give_up(self, key: Hashable, user: object) -> None:
        """Expect weights no longer for a user."""
        if (expected := self._expected.get(key)) is not None:
            expected.users.discard(user)

    def holds(self, need: Need) -> bool:
        """Whether all that is needed is held."""
        return all(key in self._held for key in need.nbytes)

    def remarks(self, key: Hashable) -> tuple[str, ...]:
        """Return the remarks on what is held under a key; none if nothing is. It may be asked at any time."""
        resident = self._held.get(key)
        return () if resident is None else resident.remarks

    def lend(self, resident: ResidentWeights, make: Callable[[], Any]) -> Any:
        """Return the model of what is held, made anew if nobody has it.

        As long as anyone has it, what is held is in use, and so is its base.
        """
        model = None if resident.model is None else resident.model()
        if model is None:
            model = make()
            resident.model = weakref.ref(model)
            resident.users.add(model)
            if resident.base is not None:
                self._held[resident.base].users.add(model)
        return model

    def fits(self, need: Need) -> bool:
        """Whether all that is needed can be had at once within the budget now.

        True if it is held, if evicting what nobody uses makes room, or if nothing is in use: what exceeds the budget by
        itself is loaded all the same.
        """
        coming = self._coming
        in_use = sum(resident.needed_bytes for resident in self._held.values() if resident.in_use)
        in_use += self.coming_bytes
        absent = [nbytes for key, nbytes in need.nbytes.items() if key not in self._held and key not in coming]
        if not absent or not in_use:
            return True
        wanted = [self._held[key] for key in need.nbytes if key in self._held]
        idle = sum(resident.needed_bytes for resident in wanted if not resident.in_use)
        return in_use + idle + sum(absent) <= self.budget_bytes

    def has_room_ahead(self, need: Need, spared: Callable[[str], bool]) -> bool:
        """Whether all that is needed fits the budget beside what is in use, what is coming, and idle weights by name.

        Those are then the last to go.
        """
        kept = [key for key, resident in self._held.items() if not resident.in_use and spared(resident.name)]
        for key in kept:
            self._held[key] = self._held.pop(key)
        stays = sum(r.nbytes for key, r in self._held.items() if r.in_use or key in kept or key in need.nbytes)
        absent = sum(nbytes for key, nbytes in need.nbytes.items() if key not in self._held and key not in self._coming)
        return stays + self.coming_bytes + absent <= self.budget_bytes

    def has(self, key: Hashable) -> bool:
        """Whether something is held under a key. It may be asked at any time."""
        return key in self._held

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes are free without evicting anything."""
        return self.nbytes + self.coming_bytes + nbytes <= self.budget_bytes

    def make_room(self, nbytes: int) -> None:
        """Evict what is used least recently until nbytes fit the budget, or until all that is left is in use."""
        self._evict(lambda: self.has_room(nbytes))

    def release(self, nbytes: int | None = None) -> int:
        """Evict what is not in use, least recently used first, until so many bytes have gone; None: all of it.

        Return how many went.
        """
        held, evictions = self.nbytes, self.evictions
        self._evict(lambda: nbytes is not None and held - self.nbytes >= nbytes)
        self.releases += self.evictions - evictions
        return held - self.nbytes

    def _evict(self, enough: Callable[[], bool]) -> None:
        if not enough():
            for loras in [resident.loras for resident in self._held.values()]:
                if loras is not None:
                    loras.unmerge()
        unused = [key for key, resident in self._held.items() if not resident.in_use]
        while unused and not enough():
            key = unused.pop(0)
            for going in [key, *(other for other, resident in self._held.items() if resident.base == key)]:
                if (evicted := self._held.pop(going, None)) is not None:
                    _log.info("let go of %s: mb=%d", evicted.name, evicted.nbytes >> 20)
                    self.evictions += 1
                    self._evicted.append(evicted)

    def evicted(self) -> list[ResidentWeights]:
        """Return what has been evicted since this was last asked, whose memory is taken as long as anyone has it."""
        evicted, self._evicted = self._evicted, []
        return evicted

    @property
    def coming_bytes(self) -> int:
        """How many bytes have been given room that are not held yet."""
        return sum(self._coming.values())

    @property
    def _coming(self) -> dict[Hashable, int]:
        """How many bytes those take that are expected, by key."""
        self._expected = {key: expected for key, expected in self._expected.items() if len(expected.users)}
        return {key: expected.nbytes for key, expected in self._expected.items()}
