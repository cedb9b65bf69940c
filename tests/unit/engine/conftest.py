"""An engine that ends with the test."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import pytest

from serve_app.engine.curve import Curves
from serve_app.engine.engine import Engine
from serve_app.engine.timeline import HostTimeline
from tests.unit.engine.mixes import MAX_CELLS


class AllThatFit(Curves):
    """Takes the largest size, whatever was measured."""

    def enough(self, key: Hashable, sizes: Sequence[int]) -> int:
        return len(sizes)


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve_app.engine.engine.Curves", AllThatFit)
        yield
