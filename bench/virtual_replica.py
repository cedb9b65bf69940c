"""What a replica in virtual time holds and loads: one file at a time, beside what it runs, the oldest in use out first.

As `engine/loads.py` and `models/weights/residency.py` have it: what a job needs is loaded before what is loaded
ahead, unless that has been begun; and a LoRA is held for the weights that it is on, so it goes with them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias


@dataclass(frozen=True)
class Model:
    """A checkpoint or a LoRA: how large it is, and how long loading it and a step with it take."""

    name: str
    gb: float
    load_s: float
    step_s: float = 0.0


Models: TypeAlias = tuple[Model, ...]
"""What a job needs at once: a checkpoint, and its LoRA if it has one."""


class Held(NamedTuple):
    """Weights on a replica. base: the file whose weights they are on, or their own. ready_s: from when they are there.

    resident: what they are called in messages.
    """

    gb: float
    base: str
    ready_s: float
    resident: str


@dataclass
class Weights:
    """held: by file. free_s: when all that is being loaded is there. ahead: what is to be loaded ahead.

    spare: the files that are not to make way for that.
    """

    memory_gb: float
    held: OrderedDict[str, Held] = field(default_factory=OrderedDict)
    free_s: float = 0.0
    ahead: list[Models] = field(default_factory=list)
    spare: frozenset[str] = frozenset()

    def use(self, models: Models, now_s: float) -> tuple[float, Models]:
        """Hold what a job needs; return when all of it is there, and what is loaded for it."""
        absent = tuple(model for model in models if model.name not in self.held)
        for model in absent:
            self._load(model, models, now_s)
        for model in reversed(models):
            self.held.move_to_end(model.name)
        while self._gb > self.memory_gb and next(iter(self.held)) not in _names(models):
            self._evict(next(iter(self.held)))
        return max([now_s, *(self.held[model.name].ready_s for model in models)]), absent

    def load_ahead(self, running: Sequence[Models], now_s: float) -> Model | None:
        """Begin to load what is to be loaded ahead, if nothing is loaded and it has room; return what that is.

        Room is what is free, and what is neither spared nor needed by what runs.
        """
        while self.ahead and self.free_s <= now_s:
            models = self.ahead[0]
            absent = [model for model in models if model.name not in self.held]
            if absent and self._make_way(absent[0].gb, self.spare.union(_names(models), *map(_names, running))):
                self._load(absent[0], models, now_s)
                return absent[0]
            del self.ahead[0]
        return None

    def _load(self, model: Model, models: Models, now_s: float) -> None:
        base = models[0].name
        resident = f"backbone checkpoints/{base}" + (f" + {model.name} 1" if model.name != base else "")
        self.free_s = max(self.free_s, now_s) + model.load_s
        self.held[model.name] = Held(model.gb, base, self.free_s, resident)

    def _make_way(self, gb: float, kept: Set[str]) -> bool:
        """Let go of what is not kept until so much more has room; return whether it has. If not, all stays."""
        going = [name for name, held in self.held.items() if kept.isdisjoint((name, held.base))]
        stay_gb = self._gb - sum(self.held[name].gb for name in going)
        if stay_gb + gb > self.memory_gb:
            return False
        while self._gb + gb > self.memory_gb:
            self._evict(next(name for name in self.held if name in going))
        return True

    @property
    def _gb(self) -> float:
        return sum(held.gb for held in self.held.values())

    def _evict(self, name: str) -> None:
        for gone in [other for other, held in self.held.items() if name in (other, held.base)]:
            del self.held[gone]


def _names(models: Models) -> set[str]:
    return {model.name for model in models}
