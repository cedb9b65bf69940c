"""The models that ship, and a runtime over them."""

import pytest

from serve_app.models.shipped import SHIPPED
from training.drawing import runtime as open_runtime


@pytest.fixture(scope="session")
def runtime():
    with open_runtime(SHIPPED) as opened:
        yield opened
