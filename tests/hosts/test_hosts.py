"""A short campaign on a cluster of three hosts: jobs while its hosts are cut off, deaf, lossy and turned off.

It is a program of its own, `python -m tests.hosts --short`, so that nothing of it can keep the tests from ending.
`make cluster` is the long one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.hosts import cluster, network
from tests.hosts.alone import MARK, alone, clear

LIMIT_S = 840
"""What it may take once it has begun; two idle cores need 200 s. Then it ends what it has started, and says so."""
WAIT_S = 30.0
"""For another run's end."""
ENDED_S = 870.0
"""When it is ended by force."""


@pytest.mark.parametrize(
    "only",
    [pytest.param("power lost|database", id="a host, a link"), pytest.param("", id="five", marks=pytest.mark.long)],
)
def test_what_is_accepted_ends_once_whatever_becomes_of_hosts_and_links(tmp_path: Path, only: str) -> None:
    if (why := network.missing() or cluster.missing()) is not None:
        pytest.skip(why)
    log = tmp_path / "log"
    try:
        status = _run(log, "--short", f"--only={only}", "--seed=1", f"--limit={LIMIT_S}", f"--wait={WAIT_S:.0f}")
    finally:
        # A run that was ended by force has left its hosts.
        with contextlib.suppress(TimeoutError), alone(1.0):
            pass

    assert status == 0, log.read_text()[-6000:]


def _run(log: Path, *arguments: str) -> int | None:
    """Run a campaign, whose processes have nothing of this one's. Return its exit status, None if it did not end."""
    # It ends with this process too, however that ends.
    command = ["setpriv", "--pdeathsig=TERM", sys.executable, "-m", "tests.hosts", *arguments]
    with (
        log.open("wb") as said,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        ) as campaign,
    ):
        try:
            return campaign.wait(ENDED_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            campaign.kill()


def test_a_run_begins_by_ending_what_a_killed_one_has_left() -> None:
    if (why := network.missing()) is not None:
        pytest.skip(why)
    with alone(WAIT_S) as folder:
        network.Network(["left"])
        (folder / "left").mkdir()
        left = subprocess.Popen(
            ["ip", "netns", "exec", f"{network.MARK}-left", "sleep", "600"], env={**os.environ, MARK: "1"}
        )
        try:
            clear()

            assert not psutil.pid_exists(left.pid)
            assert not folder.exists()
            assert network.namespaces() == network.interfaces() == []
        finally:
            left.kill()
