"""A short campaign: half a minute of jobs while parts of the server are killed. `make chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import Plan, under_faults
from tests.chaos.faults import faults
from tests.chaos.site import Setting, Site

QUICK = (
    "PoisonSystemExit",
    "PoisonSystemExitAsync",
    "PoisonKeyboardInterrupt",
    "PoisonKeyboardInterruptAsync",
)
"""Poison that costs no replica, and so little time; one of each."""


# Each of its faults alone has a test: of parts in cluster.test_kills and test_supervision, of nodes in test_guards.
@pytest.mark.long
def test_what_is_accepted_ends_once_and_as_it_should_whatever_is_killed(tmp_path: Path) -> None:
    plan = Plan(jobs=45, kills=4, cancels=12, poison=0.09, seed=1, short=True, kinds=QUICK)

    site = Site(Setting(tmp_path))
    report = under_faults(plan, site, faults(site, short=True), site.setting.title)

    assert report.violations == [], "\n".join(report.lines())
