"""What is made from the metric table and from the shipped configuration."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from k8s.generate import MONITORING, RATIOS, SERVE, dashboard, files
from serve_app.deployments.metrics import METRICS


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_generated_files_are_as_they_would_be_made_now(path):
    assert path.read_text() == files()[path], "run `python -m k8s.generate`"


def test_every_metric_is_shown_and_nothing_that_does_not_exist():
    names = {match for query in expressions() for match in re.findall(r"ray_\w+", query)}
    known = {metric.exported for metric in METRICS} | {name for name, *_ in SERVE}
    assert {re.sub("_bucket$", "", name) for name in names} == known


def test_prometheus_can_read_every_expression(tmp_path):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    queries = [query.replace("$__rate_interval", "1m") for query in expressions()]
    rules = [{"record": f"panel:{i}", "expr": query} for i, query in enumerate(queries)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


ALERTED = [
    ("ServeAppAway", {}, "1h"),
    ("ServeAppQueueIsOld", {"ray_serve_app_queue_oldest_seconds": "1000x60"}, "30m"),
    (
        "ServeAppJobsFail",
        {
            'ray_serve_app_jobs_ended_total{state="error"}': "0+4x60",
            'ray_serve_app_jobs_ended_total{state="success"}': "0+6x60",
        },
        "30m",
    ),
    ("ServeAppNoReplica", {'ray_serve_app_tasks{pool="gpu",state="waiting"}': "3x60"}, "30m"),
    ("ServeAppForwardsFail", {'ray_serve_app_forward_failures_total{pool="gpu"}': "0+1x60"}, "30m"),
    ("ServeAppLimitIsFull", {'ray_serve_app_limit_use{limit="max_queue"}': "0.95x60"}, "30m"),
    (
        "ServeAppAnswersErrors",
        {
            'ray_serve_num_http_requests_total{status_code="200"}': "0+60x60",
            'ray_serve_num_http_requests_total{status_code="500"}': "0+60x60",
        },
        "30m",
    ),
    ("ServeAppBackupIsOld", {"ray_serve_app_last_backup_timestamp_seconds": "-180000x60"}, "30m"),
    (
        "ServeAppDiskIsFull",
        {
            'ray_node_disk_free{NodeAddress="10.0.0.1"}': "5x60",
            'ray_node_disk_usage{NodeAddress="10.0.0.1"}': "95x60",
        },
        "30m",
    ),
]
"""Alerts, with series that set each off: a value a minute."""


def test_each_alert_fires_on_its_cause_and_on_no_other(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert names == [name for name, *_ in ALERTED]
    known = {metric.exported for metric in METRICS} | {name for name, *_ in SERVE}
    used = set(re.findall(r"ray_\w+", (MONITORING / "rules.yaml").read_text()))
    assert {name for name in used - known if not name.startswith("ray_node_disk_")} == set()
    healthy = {"ray_serve_app_jobs": "0x60", 'ray_serve_app_replicas{pool="other"}': "1x60"}
    tests = []
    for name, series, at in ALERTED:
        given = series if name == "ServeAppAway" else healthy | series
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": key, "values": values} for key, values in given.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": at,
                        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}],
                    }
                ],
            }
        )
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(MONITORING / "rules.yaml")], "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_lie_beside_each_other_and_have_ids_of_their_own():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert json.loads(json.dumps(panels)) == panels


def test_a_ratio_divides_counters_of_equal_labels():
    labels = {metric.name: metric.labels for metric in METRICS if metric.kind == "counter"}
    for _, _, above, below, _ in RATIOS:
        assert labels[above] == labels[below]
