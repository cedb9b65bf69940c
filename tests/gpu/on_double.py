"""A plugin of pytest that runs the tests of a GPU on a card that only claims to be one: `-p tests.gpu.on_double`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.unit.engine.card import Card
from tests.unit.engine.card_driver import GB, driven, threads_on

_STACK = ExitStack()


@contextmanager
def double() -> Iterator[Card]:
    """A card that all threads use that begin meanwhile, and this one."""
    card = Card(total_bytes=24 * GB)
    assert card.driver is not None
    with driven(card.driver), threads_on(card.used):
        yield card


def pytest_configure(config: pytest.Config) -> None:
    """Have it before tests are collected, some of which are skipped where there is no GPU."""
    _STACK.enter_context(double())


def pytest_unconfigure(config: pytest.Config) -> None:
    _STACK.close()
