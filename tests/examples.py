"""How many examples tests try of a property: few in `make test`, many in `make test-all`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

PROFILES = {"short": 30, "long": 200}
"""Examples a property, by profile. pytest's --hypothesis-profile names one; "short" otherwise."""


def register() -> None:
    # How long an example takes says more of the machine than of the code; the first one also builds Unicode's tables.
    for name, examples in PROFILES.items():
        settings.register_profile(
            name, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )
    settings.load_profile("short")


def fewer(times: int) -> settings:
    """Return settings for a property whose examples are slow: the profile's number of them divided by `times`."""
    return settings(max_examples=settings().max_examples // times)


def seeds(few: int, many: int) -> list[Any]:
    """Return the seeds of a test of drawn cases, of which those after the first `few` are part of its long form."""
    return [*range(few), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(few, many))]
