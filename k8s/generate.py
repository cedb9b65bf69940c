"""Write what follows from something else: `python -m k8s.generate`. A test holds the files to it.

configs/cluster.yaml → the RayService's serveConfigV2, as it is, with its files in a bucket, and with a pool that is a
ComfyUI; the metric table →
docs/metrics.md and the Grafana dashboard; the alerts of Prometheus → the operator's PrometheusRule.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from serve_app.deployments.metrics import METRICS, Metric

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "configs" / "cluster.yaml"
MONITORING = ROOT / "k8s" / "components" / "monitoring"

SECTIONS = {
    "Jobs": ("serve_app_job", "serve_app_queue", "serve_app_nodes", "serve_app_last_backup"),
    "Pools": (
        "serve_app_replicas",
        "serve_app_tasks",
        "serve_app_backlog",
        "serve_app_node_seconds",
        "serve_app_result",
    ),
    "Models": (
        "serve_app_evaluations",
        "serve_app_forward",
        "serve_app_weights",
        "serve_app_host",
        "serve_app_streamed",
        "serve_app_vae",
        "serve_app_run_state",
        "serve_app_resumed",
        "serve_app_moved",
        "serve_app_repeated",
        "serve_app_stored",
    ),
    "Tenants": ("serve_app_tenant",),
    "Limits": ("serve_app_refusals", "serve_app_limit"),
}
"""The dashboard's rows: the beginnings of the names of the metrics in each."""

RATIOS = (
    ("Models", "Latents in one forward", "serve_app_forward_rows", "serve_app_forwards", "short"),
    ("Models", "Time of one forward", "serve_app_forward_seconds", "serve_app_forwards", "s"),
    ("Models", "Time to load weights", "serve_app_weights_load_seconds", "serve_app_weights_loads", "s"),
)
"""Panels of one counter's growth over another's: row, title, both names, unit."""

SERVE = (
    ("ray_serve_num_http_requests_total", "counter", "route, method, status_code", "Requests by route, from Serve"),
    ("ray_serve_http_request_latency_ms", "histogram", "route, method", "Latency by route, from Serve"),
)
"""HTTP by route: Serve counts it where the requests come in."""

IN_PODS = """\
      # In a pod of its own, which alone may reach the Internet.
      webhooks: {hosts: {role: webhooks}}
"""
"""What every overlay says before all else: where the webhook sender runs."""

IN_BUCKET = """\
      # The store's address and credentials are the environment's.
      store: {kind: s3, bucket: serve-app, prefix: files, path_style: true}
      models: s3://serve-app/models
      models_cache_bytes: 150000000000
"""
"""What the s3 overlay says before all else."""

COMFYUI = """\
        # Workflows with classes that the pools above do not have run in the image's ComfyUI, one at a time a replica.
        - name: comfyui
          comfyui: {directory: /opt/ComfyUI, python: /opt/ComfyUI/venv/bin/python}
          num_gpus: 1
          min_replicas: 0
          max_replicas: 2
"""
"""What the comfyui overlay says after all else: one more pool."""

HTTP_PANELS = (
    ("Requests by route", "sum by (route, status_code) (rate(ray_serve_num_http_requests_total[$__rate_interval]))",
     "{{route}} {{status_code}}", "reqps"),
    ("Latency by route, 95 of 100",
     "histogram_quantile(0.95, sum by (le, route) (rate(ray_serve_http_request_latency_ms_bucket[$__rate_interval])))",
     "{{route}}", "ms"),
)  # fmt: skip


def main() -> None:
    """Write every generated file."""
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(ROOT))


def files() -> dict[Path, str]:
    """Return what every generated file must hold."""
    config = saying(IN_PODS, CLUSTER.read_text())
    return {
        ROOT / "docs" / "metrics.md": table(),
        ROOT / "k8s" / "base" / "grafana-dashboard.json": json.dumps(dashboard(), indent=1) + "\n",
        MONITORING / "prometheusrule.yaml": prometheus_rule((MONITORING / "rules.yaml").read_text()),
        ROOT / "k8s" / "base" / "serve-config.yaml": patch(config),
        ROOT / "k8s" / "overlays" / "s3" / "serve-config.yaml": patch(saying(IN_BUCKET, config)),
        ROOT / "k8s" / "overlays" / "comfyui" / "serve-config.yaml": patch(config + COMFYUI),
    }


def saying(lines: str, config: str) -> str:
    """Return a configuration with lines of the application's before all else that it says."""
    first, rest = config.split("    args:\n", 1)
    return f"{first}    args:\n{lines}{rest}"


def patch(config: str) -> str:
    """Return a patch that gives the RayService this configuration."""
    return "# Made by k8s/generate.py from configs/cluster.yaml.\n" + yaml.dump(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": {"name": "serve-app"},
            "spec": {"serveConfigV2": Text(config)},
        },
        Dumper=Dumper,
        sort_keys=False,
    )


def prometheus_rule(rules: str) -> str:
    """Return a rule file of Prometheus as the operator's kind."""
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "serve-app", "namespace": "serve-app"},
        "spec": yaml.safe_load(rules),
    }
    return "# Made by k8s/generate.py from rules.yaml.\n" + yaml.safe_dump(manifest, sort_keys=False, width=120)


class Text(str):
    """A string that YAML shows line by line."""


class Dumper(yaml.SafeDumper):
    """Writes Text as a block."""


Dumper.add_representer(
    Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")
)


def table() -> str:
    """Return docs/metrics.md."""
    rows = [(m.exported, m.kind, ", ".join(m.labels), m.help) for m in METRICS] + list(SERVE)
    lines = [f"| `{name}` | {kind} | {labels or '–'} | {what} |" for name, kind, labels, what in rows]
    return "\n".join(
        [
            "# Metrics",
            "",
            "Every host exports them on Ray's metrics port; Prometheus finds them by `k8s/components/monitoring`, and",
            "`k8s/base/grafana-dashboard.json` shows them. Scheduler and replicas are read every two seconds, and Ray",
            "exports every ten, so a figure is up to twelve seconds old. Names of time are in seconds. Ray adds labels",
            "for the host and the process. Made by `python -m k8s.generate` from `serve_app/deployments/metrics.py`.",
            "",
            "| name in Prometheus | kind | labels | what |",
            "|---|---|---|---|",
            *lines,
            "",
        ]
    )


def dashboard() -> dict[str, Any]:
    """Return the Grafana dashboard: a row a section, a panel a metric, and the ratios that say how batching does."""
    panels: list[dict[str, Any]] = []
    y = 0
    for section, shown in _panels():
        panels.append({"type": "row", "title": section, "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}, "panels": []})
        y += 1
        for i, (title, targets, unit) in enumerate(shown):
            at = {"h": 7, "w": 8, "x": 8 * (i % 3), "y": y + 7 * (i // 3)}
            panels.append(_panel(title, targets, unit, at))
        y += 7 * -(-len(shown) // 3)
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": "serve-app",
        "title": "serve-app",
        "tags": ["ray", "serve-app"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}]
        },
        "panels": panels,
    }


Targets = list[tuple[str, str]]
"""PromQL expressions, each with its legend."""


def _panels() -> Iterator[tuple[str, list[tuple[str, Targets, str]]]]:
    divided = {name for _, _, *names, _ in RATIOS for name in names}
    for section, beginnings in SECTIONS.items():
        shown: list[tuple[str, Targets, str]] = [
            (metric.help, _targets(metric), "short" if metric.kind == "counter" else metric.unit)
            for metric in METRICS
            if metric.name.startswith(beginnings) and not (metric.unit == "s" and metric.name in divided)
        ]
        for row, title, above, below, unit in RATIOS:
            if row == section:
                shown.append((title, [(f"{_growth(above)} / {_growth(below)}", "{{pool}}")], unit))
        yield section, shown
    yield "HTTP", [(title, [(query, legend)], unit) for title, query, legend, unit in HTTP_PANELS]


def _growth(name: str) -> str:
    return f"sum by (pool) (rate(ray_{name}_total[$__rate_interval]))"


def _targets(metric: Metric) -> Targets:
    labels = [label for label in metric.labels if label != "replica"]
    by = f" by ({', '.join(labels)})" if labels else ""
    legend = " ".join(f"{{{{{label}}}}}" for label in labels) or metric.name.removeprefix("serve_app_")
    match metric.kind:
        case "gauge":
            # Several hosts may export one series for a while, when the scheduler moves.
            return [(f"{'max' if metric.unit == 's' else 'sum'}{by} ({metric.exported})", legend)]
        case "counter":
            return [(f"sum{by} (rate({metric.exported}[$__rate_interval]))", legend)]
        case "histogram":
            by = f" by ({', '.join(['le', *labels])})"
            buckets = f"sum{by} (rate({metric.exported}_bucket[$__rate_interval]))"
            return [(f"histogram_quantile({q}, {buckets})", f"{legend} {100 * q:.0f} %") for q in (0.5, 0.95)]


def _panel(title: str, targets: Targets, unit: str, at: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": at,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": source, "expr": query, "legendFormat": legend}
            for i, (query, legend) in enumerate(targets)
        ],
    }


if __name__ == "__main__":
    main()
