"""What ending a replica costs whoever did it: their next jobs wait, longer each time, and nobody else's. Pure.

A loss is counted where its cause is known: a node that does not stop or went on after its job as the replica died, a
job that ran alone, or one that is cancelled before it has shown that it was not what ended its replica. From ALONE_FROM
losses on the owner's jobs also run alone (`quarantine.py`). One loss is forgiven for each `forgiven_s` without another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import TypeAlias

from serve_app.config.limits import BackoffRules
from serve_app.store.database.changes import JobRow, OwnerCharged

Owner: TypeAlias = tuple[str, str | None]
"""Whose a job is: its tenant, or among jobs without one its client."""
ALONE_FROM = 2


def owner_of(row: JobRow) -> Owner:
    """Return whose a job is; jobs without tenant and client are one owner's."""
    return row.tenant, None if row.tenant else row.client_id


@dataclass(slots=True)
class Losses:
    """Replicas that an owner has ended and not been forgiven; the last one's time, and until when its jobs wait."""

    count: int = 0
    last_s: float = 0.0
    until_s: float = 0.0

    @property
    def alone(self) -> bool:
        """Whether the owner's jobs run where no other job does."""
        return self.count >= ALONE_FROM


class Backoff:
    """One a machine. Whoever waits does so until `advance` says otherwise. All times are Unix times.

    charged: what earlier lives of the scheduler have counted.
    """

    def __init__(self, rules: BackoffRules, charged: Iterable[OwnerCharged] = ()) -> None:
        self._rules = rules
        self._losses = {(c.tenant, c.client_id): Losses(c.count, c.last_s, c.until_s) for c in charged}
        self._waiting = set(self._losses)
        self._advance_s = float("inf")
        self.totals: dict[str, int] = {}
        """Replicas that each tenant has ended since this life of the scheduler began."""

    def blocks(self, owner: Owner) -> bool:
        """Whether an owner's next jobs wait."""
        return owner in self._waiting

    def of(self, owner: Owner) -> Losses:
        """Return what an owner has lost."""
        return self._losses.get(owner, Losses())

    def owners(self) -> Iterator[tuple[Owner, Losses]]:
        """Yield whoever has losses."""
        yield from self._losses.items()

    def charge(self, owner: Owner, at_s: float) -> Losses:
        """Count a replica that an owner has ended, and have its next jobs wait."""
        losses = self._losses.setdefault(owner, Losses())
        losses.count, losses.last_s = losses.count + 1, at_s
        losses.until_s = at_s + min(self._rules.longest_s, self._rules.first_s * 2.0 ** min(losses.count - 1, 64))
        self.totals[owner[0]] = self.totals.get(owner[0], 0) + 1
        self._waiting.add(owner)
        self._advance_s = at_s
        return losses

    def advance(self, at_s: float) -> Set[Owner]:
        """Forgive losses of long ago; return whose jobs wait no longer."""
        # The clock may be set back, which makes nobody wait for longer than ever.
        if self._advance_s - self._rules.longest_s - self._rules.forgiven_s <= at_s < self._advance_s:
            return frozenset()
        released = set[Owner]()
        for owner, losses in list(self._losses.items()):
            losses.until_s = min(losses.until_s, at_s + self._rules.longest_s)
            losses.last_s = min(losses.last_s, at_s)
            forgiven = min(losses.count, int((at_s - losses.last_s) / self._rules.forgiven_s))
            losses.count, losses.last_s = losses.count - forgiven, losses.last_s + forgiven * self._rules.forgiven_s
            if owner in self._waiting and losses.until_s <= at_s:
                self._waiting.discard(owner)
                released.add(owner)
            if not losses.count and owner not in self._waiting:
                del self._losses[owner]
        self._advance_s = min(
            (
                min(losses.last_s + self._rules.forgiven_s, losses.until_s if owner in self._waiting else float("inf"))
                for owner, losses in self._losses.items()
            ),
            default=float("inf"),
        )
        return released
