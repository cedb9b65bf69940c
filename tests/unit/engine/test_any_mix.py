"""The property that batching rests on: in any mix of jobs, each gets what it gets alone."""

from __future__ import annotations

from concurrent.futures import wait
from copy import copy
from dataclasses import replace
from math import prod
from threading import Lock

from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.engine import Engine
from serve_app.engine.timeline import HostTimeline
from serve_app.engine.trajectory import Trajectory
from tests.unit.engine.mixes import TinyBackbone, all_that_fit, alone, jobs, relative_error, tiny_flow

TOLERANCE = 1e-5
# Its steps follow from the difference of two nearly equal latents, so rounding there moves the levels it evaluates at.
ADAPTIVE_TOLERANCE = 1e-3


def sensitivity(backbone, request, expected):
    """Return how far a run's result moves with what it starts from and is answered: some amplify every rounding.

    Both, because a flow at its full noise keeps nothing of its latents.
    """
    moved = copy(backbone)
    moved.gain = 1 + 1e-6
    return relative_error(alone(moved, replace(request, latents=request.latents + 1e-6)), expected)


def check_mix(mix, backbone, max_cells):
    """Run a mix, joining and cancelling at the forwards its jobs name, and compare each with its oracle."""
    expected = [alone(backbone, job.request) for job in mix]
    trajectories = [Trajectory(backbone, job.request) for job in mix]
    futures = {}
    with all_that_fit():
        engine = Engine(max_cells, HostTimeline())
    first = len(backbone.calls)
    joining = Lock()

    def before(count):
        with joining:
            for i, job in enumerate(mix):
                if i not in futures and job.joins < count - first:
                    futures[i] = engine.submit(trajectories[i])
                if i in futures and job.leaves is not None and job.leaves < count - first:
                    futures[i].cancel()

    backbone.before = before
    try:
        while len(futures) < len(mix):
            # No forward is left to join at, so the next job to join starts the engine again.
            i = min(set(range(len(mix))) - futures.keys(), key=lambda i: mix[i].joins)
            with joining:
                futures[i] = engine.submit(trajectories[i])
            while unfinished := [future for future in list(futures.values()) if not future.done()]:
                assert wait(unfinished, timeout=60).done
    finally:
        backbone.before = None
        engine.close()
    for i, job in enumerate(mix):
        if not futures[i].cancelled():
            tolerance = ADAPTIVE_TOLERANCE if job.request.sampler.name == "dpm_adaptive" else TOLERANCE
            error = relative_error(futures[i].result().latents, expected[i])
            assert error <= tolerance or error <= 10 * sensitivity(backbone, job.request, expected[i])
        else:
            assert job.leaves is not None
    assert engine.counters.failures == 0
    # A piece is not split: a batch of latents takes as many cells as it has.
    largest = max(max_cells, *(job.request.latents[:, 0].numel() for job in mix))
    assert all(rows * prod(sides) <= largest for rows, _, *sides in backbone.calls[first:])


@given(st.lists(jobs(), min_size=1, max_size=6), st.sampled_from([1, 48, 72, 160, 1000]))
def test_any_mix_of_jobs_in_any_order_gives_each_what_it_gets_alone(mix, max_cells):
    check_mix(mix, TinyBackbone(), max_cells)


OF_VIDEO = ((3, 1, 4, 4), (3, 2, 4, 6))
OF_A_FLOW = (1.0, 0.97, 0.8, 0.6, 0.35, 0.2, 0.05)


@given(st.lists(jobs(OF_VIDEO, levels=OF_A_FLOW), min_size=1, max_size=6), st.sampled_from([1, 48, 72, 160, 1000]))
def test_any_mix_of_jobs_on_a_video_flow_gives_each_what_it_gets_alone(mix, max_cells):
    check_mix(mix, tiny_flow(), max_cells)
