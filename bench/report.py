"""The results as files: `<date>-<device>.json` with every figure, and README.md, a table written from it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import torch

from bench.series import Ratio, Series

RESULTS = Path(__file__).parent / "results"


def write(series: Sequence[Series], ratios: Sequence[Ratio], load_before: float, note: str) -> Path:
    """Write both files and return the JSON's path."""
    cuda = torch.cuda.is_available()
    document: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "load_before": load_before,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ray": ray.__version__,
            "commit": _git("rev-parse", "--short=12", "HEAD")
            + ("+" if _git("status", "--porcelain", "serve_app") else ""),
        },
        "note": note,
        "series": [asdict(s) | {"median": s.median} for s in series],
        "ratios": [asdict(r) | {"median": r.median, "met": r.met} for r in ratios],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{document['date'][:10]}-{'gpu' if cuda else 'cpu'}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "README.md").write_text(page(document, path.name))
    return path


def page(document: dict[str, Any], source: str) -> str:
    """Return the results as Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in document["machine"].items())
    lines = [
        "# Results",
        "",
        f"Written by `python -m bench` from [{source}]({source}) on {document['date'][:10]}: {machine}.",
        "Medians over rounds in which the contenders take turns, lowest and highest in brackets. A ratio is taken",
        "within each round; its median need not be the ratio of the medians.",
    ]
    if document["note"]:
        lines += ["", document["note"]]
    for benchmark in dict.fromkeys(s["benchmark"] for s in document["series"]):
        lines += ["", f"## {benchmark}", "", "| case | contender | median | spread | rounds |", "|---|---|---|---|---|"]
        for s in document["series"]:
            if s["benchmark"] == benchmark:
                figure = f"{s['median']:.3g} {s['unit']}"
                lines.append(f"| {s['case']} | {s['contender']} | {figure} | {_spread(s)} | {len(s['values'])} |")
        lines += ["", "| ratio | median | spread | target | met |", "|---|---|---|---|---|"]
        for r in document["ratios"]:
            if r["benchmark"] == benchmark:
                met = {None: "", True: "yes", False: "**no**"}[r["met"]]
                lines.append(f"| {r['what']} | {r['median']:.4g} | {_spread(r)} | {r['target']} | {met} |")
    return "\n".join(lines) + "\n"


def _spread(row: dict[str, Any]) -> str:
    return f"({min(row['values']):.3g} … {max(row['values']):.3g})"


def _cpu() -> str:
    """Return the processor's name: /proc/cpuinfo says more than `platform` on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
