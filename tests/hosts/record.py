"""What campaigns on clusters of hosts have come to: a line of JSON for each fault, and a table made of all lines."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.chaos.campaign import Report
from tests.chaos.faults import Struck

HEADER = """\
# Faults of hosts and links

Written by `python -m tests.hosts --record` from [hosts.jsonl](hosts.jsonl), a line for each fault that was done to
three hosts in network namespaces of one machine (`tests/hosts`), while clients submitted mixed jobs. Accepted: jobs
that were open or came while the fault and its mending lasted. Recovery: from the beginning of the fault, whose own
length it includes, until a job that was submitted when the fault was over, before all others, was done. Load: of the
machine's two cores as the fault began; beside the cluster's own 45 processes others computed.

| fault | trials | accepted | lost | doubled | recovery, median | longest | load |
|---|---|---|---|---|---|---|---|
"""


def add(report: Report, path: Path) -> None:
    """Append the faults of a campaign to a file, and write the table next to it anew."""
    with path.open("a") as file:
        file.writelines(json.dumps(_line(struck, report)) + "\n" for struck in report.struck)
    path.with_suffix(".md").write_text(HEADER + "".join(_rows(path)))


def _line(struck: Struck, report: Report) -> dict[str, Any]:
    def broken(*words: str) -> int:
        said = [violation for violation in report.violations if any(word in violation for word in words)]
        return sum(any(job in violation for violation in said) for job in struck.jobs)

    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "fault": f"{struck.part}: {struck.action}",
        "accepted": len(struck.jobs),
        "lost": broken("lost: "),
        "doubled": broken("doubled: ", "twice"),
        "recovery_s": None if struck.mended_s is None else round(struck.mended_s, 1),
        "load": round(struck.load, 1),
    }


def _rows(path: Path) -> Iterator[str]:
    by_fault: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in path.read_text().splitlines():
        by_fault[(found := json.loads(line))["fault"]].append(found)
    for fault, trials in sorted(by_fault.items()):
        sums = " | ".join(str(sum(trial[name] for trial in trials)) for name in ("accepted", "lost", "doubled"))
        recovered = [trial["recovery_s"] for trial in trials if trial["recovery_s"] is not None]
        middle = f"{statistics.median(recovered):.0f} s" if recovered else "never"
        longest = f"{max(recovered):.0f} s" if len(recovered) == len(trials) else "never"
        loads = [trial["load"] for trial in trials]
        yield f"| {fault} | {len(trials)} | {sums} | {middle} | {longest} | {min(loads):.0f} … {max(loads):.0f} |\n"
