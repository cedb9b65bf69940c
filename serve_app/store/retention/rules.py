"""The retention bounds: how long, how many and how many bytes of jobs and files are kept. Applied by `retention.py`.

Needs no database, so that the configuration can be read without one.
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
    """The bounds of a kind: age in seconds, count and bytes. None is no bound."""

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
    """Bounds by kind, with tenants' own ones. every_s: the interval at which they are applied."""

    default: Mapping[RetentionKind, RetentionBounds] = field(default_factory=dict)
    tenants: Mapping[str, Mapping[RetentionKind, RetentionBounds]] = field(default_factory=dict)
    every_s: float = 300.0

    @classmethod
    def of(cls, config: RetentionConfig) -> RetentionRules:
        """Return the configured rules."""
        tenants = {tenant: _by_kind(kept) for tenant, kept in config.tenants.items()}
        return cls(_by_kind(config), tenants, config.every_s)

    def bounds(self, kind: RetentionKind, tenant: str) -> RetentionBounds:
        """Return a tenant's bounds."""
        return self.tenants.get(tenant, {}).get(kind) or self.default.get(kind, NO_BOUNDS)

    def concern(self, *kinds: RetentionKind) -> bool:
        """Whether any tenant has a bound of one of these kinds."""
        given = (rules.get(kind, NO_BOUNDS) for rules in (self.default, *self.tenants.values()) for kind in kinds)
        return any(bounds.bound for bounds in given)


def _by_kind(config: KeptConfig) -> dict[RetentionKind, RetentionBounds]:
    """Return the configured bounds, by kind."""
    given: dict[RetentionKind, KeepConfig | None] = {
        "history": config.history,
        "outputs": config.outputs,
        "previews": config.previews,
        "uploads": config.uploads,
        "temp": config.temp,
    }
    return {kind: RetentionBounds.of(keep) for kind, keep in given.items() if keep is not None}
