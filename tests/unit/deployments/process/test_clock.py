"""Which changes of the wall clock are noticed."""

from __future__ import annotations

import pytest
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from serve_app.deployments.process import clock
from serve_app.deployments.process.clock import STEP_S, Clock


class Hands:
    """Two clocks that a test sets."""

    def __init__(self) -> None:
        self.wall_s, self.steady_s = 1e9, 50.0

    def pass_s(self, seconds: float) -> None:
        self.wall_s += seconds
        self.steady_s += seconds


@pytest.mark.parametrize(("step_s", "noticed_s"), [(-3600.0, 3600.0), (-STEP_S, STEP_S), (-1.0, 0.0), (3600.0, 0.0)])
def test_a_clock_that_is_set_back_is_noticed_once(step_s: float, noticed_s: float) -> None:
    hands = Hands()
    watched = Clock(lambda: hands.wall_s, lambda: hands.steady_s)
    hands.pass_s(100.0)
    assert watched.set_back_s() == 0.0

    hands.pass_s(1.0)
    hands.wall_s += step_s

    assert watched.set_back_s() == pytest.approx(noticed_s)
    hands.pass_s(1.0)
    assert watched.set_back_s() == 0.0


def test_the_controller_has_the_name_that_ray_gives_it() -> None:
    assert (clock.CONTROLLER, clock.NAMESPACE) == (SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
