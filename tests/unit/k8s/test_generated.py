"""What is made from the metric table and from the shipped configuration."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from k8s.generate import RATIOS, SERVE, dashboard, files
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
