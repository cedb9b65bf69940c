"""The results as files: `cpu.json` or `gpu.json` with the last of every figure, and README.md, which shows it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import ray
import torch

from bench.series import Ratio, Series

RESULTS = Path(__file__).parent / "results"

Run: TypeAlias = dict[str, Any]
"""One call of `python -m bench`: when and where it ran, and the series and ratios that it measured last."""


def write(series: Sequence[Series], ratios: Sequence[Ratio], load_before: float, note: str) -> Path:
    """Add a run to the device's file, drop what it measured again from earlier ones, and return the file's path."""
    cuda = torch.cuda.is_available()
    run: Run = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "load_before": round(load_before, 2),
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
    path = RESULTS / ("gpu.json" if cuda else "cpu.json")
    runs = with_run(json.loads(path.read_text())["runs"] if path.exists() else [], run)
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    (RESULTS / "README.md").write_text(page(runs, path.name))
    return path


def with_run(earlier: Sequence[Run], run: Run) -> list[Run]:
    """Return runs with one more, without what it measured again and without those that nothing is left of."""
    kept = []
    for old in earlier:
        left = {
            kind: [row for row in old[kind] if _key(row) not in {_key(again) for again in run[kind]}]
            for kind in ("series", "ratios")
        }
        if any(left.values()):
            kept.append(old | left)
    return [*kept, run]


def page(runs: Sequence[Run], source: str) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Results",
        "",
        f"Written by `python -m bench` from [{source}]({source}): of each figure the last. Medians over rounds in",
        "which the contenders take turns, lowest and highest in brackets. A ratio is taken within each round; its",
        "median need not be the ratio of the medians.",
        "",
        "| run | date | machine | note |",
        "|---|---|---|---|",
    ]
    for number, run in enumerate(runs, 1):
        machine = ", ".join(f"{key} {value}" for key, value in run["machine"].items())
        lines.append(f"| {number} | {run['date']} | {machine} | {run['note']} |")
    for benchmark in dict.fromkeys(s["benchmark"] for run in runs for s in run["series"]):
        lines += ["", f"## {benchmark}", ""]
        lines += ["| case | contender | median | spread | rounds | run |", "|---|---|---|---|---|---|"]
        for number, s in _rows(runs, "series", benchmark):
            figure = f"{s['median']:.3g} {s['unit']}"
            lines.append(
                f"| {s['case']} | {s['contender']} | {figure} | {_spread(s)} | {len(s['values'])} | {number} |"
            )
        lines += ["", "| ratio | median | spread | target | met | run |", "|---|---|---|---|---|---|"]
        for number, r in _rows(runs, "ratios", benchmark):
            met = {None: "", True: "yes", False: "**no**"}[r["met"]]
            lines.append(f"| {r['what']} | {r['median']:.4g} | {_spread(r)} | {r['target']} | {met} | {number} |")
    return "\n".join(lines) + "\n"


def _rows(runs: Sequence[Run], kind: str, benchmark: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield what runs measured in a benchmark, each with its run's number."""
    for number, run in enumerate(runs, 1):
        for row in run[kind]:
            if row["benchmark"] == benchmark:
                yield number, row


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is equal for a figure and the same one measured again."""
    return tuple(str(row.get(name)) for name in ("benchmark", "case", "contender", "what"))


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
