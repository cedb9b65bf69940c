"""An engine that ends with the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serve_app.engine.engine import Engine
from serve_app.engine.timeline import HostTimeline
from tests.unit.engine.mixes import MAX_CELLS, all_that_fit


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(MAX_CELLS, HostTimeline())
    yield engine
    engine.close()


@pytest.fixture(autouse=True, scope="module")
def measured() -> Iterator[None]:
    """Have forwards hold all that fit: what they take on this machine is no part of what is tested.

    Set before the engines that a module's tests share are made.
    """
    with all_that_fit():
        yield
