"""Exponential backoff for owners whose jobs end replicas: their next jobs wait, longer after each loss. Pure.

A loss is charged if its cause is known: a node that does not stop or runs on after its job as the replica dies, a job
that ran alone, or a job that is cancelled while it may have been the cause. From ALONE_FROM losses on, the owner's jobs
also run in quarantine (`quarantine.py`). One loss is forgiven for each `forgiven_s` without another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import TypeAlias

from serve_app.config.limits import BackoffRules
from serve_app.store.database.changes import JobRow, OwnerCharged

Owner: TypeAlias = tuple[str, str | None]
"""Who is charged for a job: (its tenant, None), or without one ("", its client)."""
ALONE_FROM = 2


def owner_of(row: JobRow) -> Owner:
    """Return the owner of a job. Jobs without tenant and client have one owner."""
    return row.tenant, None if row.tenant else row.client_id


@dataclass(slots=True)
class Losses:
    """The unforgiven losses of an owner: their count, the time of the last, and until when its jobs wait."""

    count: int = 0
    last_s: float = 0.0
    until_s: float = 0.0

    @property
    def alone(self) -> bool:
        """Whether the owner's jobs run in quarantine."""
        return self.count >= ALONE_FROM


class Backoff:
    """The losses of every owner. An owner waits until `advance` releases it. All times are Unix times.

    charged: losses from earlier epochs.
    """

    def __init__(self, rules: BackoffRules, charged: Iterable[OwnerCharged] = ()) -> None:
        self._rules = rules
        self._losses = {(c.tenant, c.client_id): Losses(c.count, c.last_s, c.until_s) for c in charged}
        self._waiting = set(self._losses)
        self._advance_s = float("inf")
        self.totals: dict[str, int] = {}
        """Replicas ended in this epoch, by tenant."""

    def blocks(self, owner: Owner) -> bool:
        """Whether an owner's next jobs must wait."""
        return owner in self._waiting

    def of(self, owner: Owner) -> Losses:
        """Return an owner's losses."""
        return self._losses.get(owner, Losses())

    def owners(self) -> Iterator[tuple[Owner, Losses]]:
        """Yield every owner with losses."""
        yield from self._losses.items()

    def charge(self, owner: Owner, at_s: float) -> Losses:
        """Count a replica that an owner has ended, and make its next jobs wait."""
        losses = self._losses.setdefault(owner, Losses())
        losses.count, losses.last_s = losses.count + 1, at_s
        losses.until_s = at_s + min(self._rules.longest_s, self._rules.first_s * 2.0 ** min(losses.count - 1, 64))
        self.totals[owner[0]] = self.totals.get(owner[0], 0) + 1
        self._waiting.add(owner)
        self._advance_s = at_s
        return losses

    def advance(self, at_s: float) -> Set[Owner]:
        """Forgive old losses; return the owners whose wait is over."""
        # If the wall clock is set back, waits are bounded anew.
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
