"""A short campaign on a cluster of three hosts: jobs while its hosts are cut off, deaf, lossy and turned off.

`make cluster` is the long one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import Plan, under_faults
from tests.hosts import cluster, network
from tests.hosts.faults import faults


def test_what_is_accepted_ends_once_whatever_becomes_of_hosts_and_links(tmp_path: Path) -> None:
    if (why := network.missing() or cluster.missing()) is not None:
        pytest.skip(why)
    with cluster.started(tmp_path) as site:
        quick = faults(site, short=True)
        plan = Plan(jobs=30, kills=len(quick), poison=0.0, seed=1, short=True, restart=False)

        report = under_faults(plan, site, quick, "three hosts")

    assert report.violations == [], "\n".join(report.lines())
