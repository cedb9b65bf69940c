"""The rules of retention: for how long jobs and files are kept. What goes by them: `retention.py`.

Knows nothing of a database, so that whoever has only read the configuration needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from serve_app.config.retention import KeepConfig, KeptConfig, RetentionConfig

FileKind: TypeAlias = Literal["outputs", "previews", "uploads", "temp"]
RetentionKind: TypeAlias = Literal["history"] | FileKind
KINDS: tuple[RetentionKind, ...] = ("history", "outputs", "uploads", "previews", "temp")


@dataclass(frozen=True, slots=True)
class RetentionBounds:
    """How much is kept of a kind: nothing older than age_s, at most so many, of so many bytes. None is no bound."""

    age_s: float | None = None
    count: int | None = None
    bytes: int | None = None

    @classmethod
    def of(cls, config: KeepConfig) -> RetentionBounds:
        """Return a kind's bounds as the configuration says."""
        return cls(config.age_s, config.count, config.bytes)

    @property
    def bound(self) -> bool:
        """Whether there is any."""
        return (self.age_s, self.count, self.bytes) != (None, None, None)


NO_BOUNDS = RetentionBounds()


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """Bounds by kind, of every tenant that has none of its own for that kind. every_s: how often they are looked at."""

    default: Mapping[RetentionKind, RetentionBounds] = field(default_factory=dict)
    tenants: Mapping[str, Mapping[RetentionKind, RetentionBounds]] = field(default_factory=dict)
    every_s: float = 300.0

    @classmethod
    def of(cls, config: RetentionConfig) -> RetentionRules:
        """Return what the configuration says."""
        tenants = {tenant: _by_kind(kept) for tenant, kept in config.tenants.items()}
        return cls(_by_kind(config), tenants, config.every_s)

    def bounds(self, kind: RetentionKind, tenant: str) -> RetentionBounds:
        """Return a tenant's bounds."""
        return self.tenants.get(tenant, {}).get(kind) or self.default.get(kind, NO_BOUNDS)

    def concern(self, *kinds: RetentionKind) -> bool:
        """Whether anybody has bounds of one of these kinds."""
        given = (rules.get(kind, NO_BOUNDS) for rules in (self.default, *self.tenants.values()) for kind in kinds)
        return any(bounds.bound for bounds in given)


def _by_kind(config: KeptConfig) -> dict[RetentionKind, RetentionBounds]:
    """Return the bounds that are given."""
    given: dict[RetentionKind, KeepConfig | None] = {
        "history": config.history,
        "outputs": config.outputs,
        "previews": config.previews,
        "uploads": config.uploads,
        "temp": config.temp,
    }
    return {kind: RetentionBounds.of(keep) for kind, keep in given.items() if keep is not None}
