"""The metric table, and what reaches it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray.util import metrics as ray_metrics

from serve_app.config.pool import PoolConfig
from serve_app.deployments.metrics import (
    METRICS,
    Meters,
    backup_figures,
    limit_figures,
    model_figures,
    node_figures,
    scheduler_figures,
    stored_figures,
    tenant_figures,
)
from tests.unit.replica.cluster import cluster
from tests.unit.replica.conftest import models, root
from tests.unit.replica.test_runner import txt2img

__all__ = ["models", "root"]

TABLE = {metric.name: metric for metric in METRICS}


class Recorder:
    """Stands where Ray's own metric would export, and keeps what it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str, float, dict[str, str]]] = []
        for kind, method in [("Counter", "inc"), ("Gauge", "set"), ("Histogram", "observe")]:
            monkeypatch.setattr(getattr(ray_metrics, kind), method, self._recording(kind))

    def _recording(self, kind: str):
        def record(metric: ray_metrics.Metric, value: float, tags: dict[str, str]) -> None:
            self.seen.append((kind, metric.info["name"], value, tags))

        return record


def test_names_are_unique_and_end_as_their_unit_asks():
    assert len(TABLE) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("serve_app_")
        assert metric.name.endswith("_seconds") == (metric.unit == "s"), metric.name
        assert metric.name.endswith("_bytes") == (metric.unit == "bytes"), metric.name
        assert metric.help
        assert not metric.help.endswith(".")


def test_a_counters_total_is_exported_as_what_came_on_top(monkeypatch):
    recorder, meters = Recorder(monkeypatch), Meters()
    for total in (3, 3, 7):
        meters.show("serve_app_jobs_ended", total, {"state": "success"})
    meters.show("serve_app_jobs_ended", 1, {"state": "error"})
    assert recorder.seen == [
        ("Counter", "serve_app_jobs_ended", 3, {"state": "success"}),
        ("Counter", "serve_app_jobs_ended", 4, {"state": "success"}),
        ("Counter", "serve_app_jobs_ended", 1, {"state": "error"}),
    ]


def test_gauges_and_durations_are_exported_as_they_are(monkeypatch):
    recorder, meters = Recorder(monkeypatch), Meters()
    meters.show("serve_app_jobs", 0, {"state": "queued"})
    meters.show("serve_app_job_wait_seconds", 0.5, {})
    assert recorder.seen == [
        ("Gauge", "serve_app_jobs", 0, {"state": "queued"}),
        ("Histogram", "serve_app_job_wait_seconds", 0.5, {}),
    ]


async def test_a_cluster_that_ran_two_jobs_fills_the_whole_table_and_nothing_beside_it(root):
    async with cluster(root, (PoolConfig(name="gpu", threads=1),)) as running:
        await running.finish(await running.submit(txt2img(1), ("6",)))
        await running.finish(await running.submit(txt2img(2), ("6",)))
        waiting = scheduler_figures(running.scheduler.status.load(), running.scheduler.counters)
        runner = running.runners["gpu"]
        models = model_figures("gpu", "r", runner.models)
        limits = limit_figures(running.scheduler.status.use(), {"max_queue": 1})
        tenants = tenant_figures(running.scheduler.status.tenant_loads())
        stored = stored_figures("gpu", "r", runner.stored.counters)
        figures = [
            *waiting,
            *backup_figures(1.0),
            *tenants,
            *node_figures("gpu", "r", runner.times),
            *models,
            *limits,
            *stored,
        ]

    assert {name for name, _, _ in figures} == set(TABLE)
    for name, _, labels in figures:
        assert tuple(labels) == TABLE[name].labels
    found = {(name, labels.get("state")): value for name, value, labels in figures}
    assert found["serve_app_jobs_ended", "success"] == 2
    assert found["serve_app_jobs", "queued"] == found["serve_app_jobs", "running"] == 0
    assert found["serve_app_evaluations", None] == 8
    assert 1 <= found["serve_app_forwards", None] <= 8
    assert found["serve_app_forward_rows", None] == 16
    assert found["serve_app_weights_loads", None] == 3
    assert found["serve_app_weights_bytes", None] > 1_000_000
    assert found["serve_app_nodes", "cached"] == 3
    classes = [labels["class_type"] for name, _, labels in figures if name == "serve_app_node_seconds"]
    assert sorted(classes) == sorted(["KSampler", "VAEDecode", "SaveImage"] * 2 + [
        "CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage",
    ])  # fmt: skip


def test_a_job_that_waits_makes_the_queue_older(monkeypatch):
    from serve_app.scheduler.events.job_counters import JobCounters
    from serve_app.scheduler.protocol.cluster_view import Load

    figures = list(scheduler_figures(Load(1, 0, 12.5, ()), JobCounters()))
    assert ("serve_app_queue_oldest_seconds", 12.5, {}) in figures


def test_the_table_needs_no_torch():
    code = "import sys, serve_app.deployments.metrics\nprint('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
