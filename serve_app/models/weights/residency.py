"""An LRU cache of weights within a byte budget. It knows neither files nor networks.

Weights are in use while a caller has their model, and are not evicted meanwhile. Weights to be loaded have their bytes
reserved from the moment of a Hold, so that no other load gets them.
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
"""Limit on recorded load times that are not collected."""


@dataclass(slots=True, eq=False)
class ResidentWeights:
    """The weights of one part, or of a LoRA set on it. own_bytes: without those of `base` and `loras`.

    base: the key of the part whose tensors this one shares. remarks: warnings about its files for users.
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
        """Bytes without merged LoRA weights, which are optional."""
        return self.own_bytes + (self.loras.needed_bytes if self.loras is not None else 0)

    @property
    def in_use(self) -> bool:
        return len(self.users) > 0


class Hold:
    """Keeps weights in use while it is alive, with bytes reserved for absent ones. need: those weights."""

    __slots__ = ("__weakref__", "need")

    def __init__(self, need: Need) -> None:
        self.need = need


@dataclass(slots=True)
class _Expected:
    """Bytes reserved for absent weights. users: holds that wait for them; without any, the reservation ends."""

    nbytes: int
    users: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)


class Residency:
    """The resident weights and reservations. Callers serialise changes."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.loads = self.evictions = self.releases = 0
        self.seconds = 0.0
        self.times: deque[tuple[str, float]] = deque(maxlen=UNREAD)
        """Names of loaded weights with load times in seconds, until collected."""
        self._evicted: list[ResidentWeights] = []
        self._held: dict[Hashable, ResidentWeights] = {}
        self._expected: dict[Hashable, _Expected] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of resident weights. Safe to read at any time, also during a load."""
        return sum(resident.nbytes for resident in [*self._held.values()])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of resident weights, least recently used first. Safe to read at any time."""
        return tuple(resident.name for resident in [*self._held.values()])

    def get(self, key: Hashable, user: object) -> ResidentWeights | None:
        """Return resident weights by key, mark them in use by `user` and most recently used; None if absent."""
        if (resident := self._held.pop(key, None)) is not None:
            self._held[key] = resident
            resident.users.add(user)
            if resident.base is not None:
                # The part comes after LoRA sets made of it, which are useless without it.
                self.get(resident.base, user)
        return resident

    def put(self, key: Hashable, resident: ResidentWeights, took_s: float) -> None:
        """Add loaded weights with their load time; holds that expect them use them from now on."""
        self._held[key] = resident
        if (expected := self._expected.pop(key, None)) is not None:
            for user in expected.users:
                self.get(key, user)
        self.loads += 1
        self.seconds += took_s
        self.times.append((resident.name, took_s))

    def expect(self, nbytes: Mapping[Hashable, int], user: object) -> None:
        """Mark weights in use by `user`: resident ones, and reservations for absent ones."""
        for key in nbytes:
            self.get(key, user)
        absent = [key for key in nbytes if key not in self._held]
        self.make_room(sum(nbytes[key] for key in absent if key not in self._coming))
        for key in absent:
            self._expected.setdefault(key, _Expected(nbytes[key])).users.add(user)

    def give_up(self, key: Hashable, user: object) -> None:
        """Cancel a user's reservation."""
        if (expected := self._expected.get(key)) is not None:
            expected.users.discard(user)

    def holds(self, need: Need) -> bool:
        """Whether all needed weights are resident."""
        return all(key in self._held for key in need.nbytes)

    def remarks(self, key: Hashable) -> tuple[str, ...]:
        """Return the remarks on resident weights by key; none if absent. Safe to call at any time."""
        resident = self._held.get(key)
        return () if resident is None else resident.remarks

    def lend(self, resident: ResidentWeights, make: Callable[[], Any]) -> Any:
        """Return the model of resident weights, made anew if none is alive.

        While the model is alive, the weights and their base are in use.
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
        """Whether all needed weights can be resident at once within the budget.

        True if they are resident, if evicting unused ones makes room, or if nothing is in use: a need above the whole
        budget is loaded anyway.
        """
        coming = self._coming
        in_use = sum(resident.needed_bytes for resident in self._held.values() if resident.in_use)
        in_use += self.reserved_bytes
        absent = [nbytes for key, nbytes in need.nbytes.items() if key not in self._held and key not in coming]
        if not absent or not in_use:
            return True
        wanted = [self._held[key] for key in need.nbytes if key in self._held]
        idle = sum(resident.needed_bytes for resident in wanted if not resident.in_use)
        return in_use + idle + sum(absent) <= self.budget_bytes

    def has_room_ahead(self, need: Need, spared: Callable[[str], bool]) -> bool:
        """Whether needed weights fit the budget besides those in use, reserved ones, and idle ones named by `spared`.

        Those idle ones are then evicted last.
        """
        kept = [key for key, resident in self._held.items() if not resident.in_use and spared(resident.name)]
        for key in kept:
            self._held[key] = self._held.pop(key)
        stays = sum(r.nbytes for key, r in self._held.items() if r.in_use or key in kept or key in need.nbytes)
        absent = sum(nbytes for key, nbytes in need.nbytes.items() if key not in self._held and key not in self._coming)
        return stays + self.reserved_bytes + absent <= self.budget_bytes

    def has(self, key: Hashable) -> bool:
        """Whether weights with a key are resident. Safe to call at any time."""
        return key in self._held

    def has_room(self, nbytes: int) -> bool:
        """Whether bytes are free without evicting anything."""
        return self.nbytes + self.reserved_bytes + nbytes <= self.budget_bytes

    def make_room(self, nbytes: int) -> None:
        """Evict least recently used weights until nbytes fit the budget, or all that is left is in use."""
        self._evict(lambda: self.has_room(nbytes))

    def release(self, nbytes: int | None = None) -> int:
        """Evict unused weights, least recently used first, until nbytes are freed; None: all of them.

        Return the number of bytes freed.
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
                    _log.info("evicted %s: mb=%d", evicted.name, evicted.nbytes >> 20)
                    self.evictions += 1
                    self._evicted.append(evicted)

    def evicted(self) -> list[ResidentWeights]:
        """Return weights evicted since the last call; their memory is in use while the caller has them."""
        evicted, self._evicted = self._evicted, []
        return evicted

    @property
    def reserved_bytes(self) -> int:
        """Bytes reserved for absent weights."""
        return sum(self._coming.values())

    @property
    def _coming(self) -> dict[Hashable, int]:
        """Reserved bytes by key."""
        self._expected = {key: expected for key, expected in self._expected.items() if len(expected.users)}
        return {key: expected.nbytes for key, expected in self._expected.items()}
