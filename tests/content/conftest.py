"""The models that ship, and a runtime over them."""

from collections.abc import Iterator
from typing import Any

import pytest

from serve_app.models.shipped import SHIPPED
from training.drawing import runtime as open_runtime


@pytest.fixture(scope="session")
def runtime() -> Iterator[Any]:
    with open_runtime(SHIPPED) as opened:
        yield opened
