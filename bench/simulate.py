"""The machine and placement in virtual time, on up to a thousand replicas: `python -m bench.simulate`.

Each part prints its figures, and the targets that they meet or miss; they are kept in results/<date>-simulate.json, in
the place of the same day's earlier ones. What is virtual does not depend on the machine it runs on; processor times do,
and are taken as the least of several rounds. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from bench.cells import routed
from bench.offline import fewest_loads
from bench.report import RESULTS
from bench.traces import flood, four_models, production
from bench.virtual import Cluster, Outcome, fifo
from serve_app.replica import collector
from serve_app.scheduler.core.demand import Demand, replicas_by_count, replicas_by_seconds

MEMORY_GB = 70.0
"""What a card of 80 GB has for weights."""
LIMIT_S = 40.0
"""For how long the offline bound of one trace is computed."""
FAILURES_S = 4 * 3600.0
"""How long a replica lives on average where failures are simulated."""

SEEDS: Mapping[int, Sequence[int]] = {
    10: [*range(7, 13), *range(41, 61), *range(201, 227)],
    100: [100],
    1000: [1000],
}
"""Which production traces are run on how many replicas: on few, much depends on the trace. The rules of placement
were chosen on others: 1 to 6, 21 to 34, 61 to 72, 81 to 100."""

Figures = dict[str, Any]


def size(rounds: int) -> Figures:
    """The production trace on 10, 100 and 1,000 replicas, with bursts and replicas that die.

    Where there are several traces, each figure is their mean, but for the lowest efficiency and for what the first took
    of a processor. Efficiency, loading, idle and wasted add up to 1.
    """
    rows = []
    for replicas, jobs in ((10, 2000), (100, 8000), (1000, 20_000)):
        outcomes: list[Outcome] = []
        costs_us: list[float] = []
        fifo_loads: list[int] = []
        for seed in SEEDS[replicas]:
            trace = production(jobs, replicas, load=0.85, seed=seed)
            warm_s = trace[jobs // 3].at_s
            rounds_us = []
            for _ in range(1 if costs_us else rounds):
                gc.collect()
                outcome = Cluster(trace, replicas, memory_gb=MEMORY_GB, failures_s=FAILURES_S, warm_s=warm_s).run()
                rounds_us.append(outcome.us_a_task)
            outcomes.append(outcome)
            costs_us.append(min(rounds_us))
            fifo_loads.append(fifo(trace, replicas, MEMORY_GB).loads)
        each = [_row(outcome) for outcome in outcomes]
        rows.append({
            "replicas": replicas,
            "traces": len(each),
            **{name: fmean(row[name] for row in each) for name in each[0]},
            "lowest": min(row["efficiency"] for row in each),
            "us_a_task": costs_us[0],
            "fifo_loads": fmean(fifo_loads),
        })  # fmt: skip
    return {
        "rows": rows,
        "targets": {
            "efficiency >= 0.95": min(row["efficiency"] for row in rows) >= 0.95,
            "cost of 1,000 <= 1.2 of 10": rows[-1]["us_a_task"] <= 1.2 * rows[0]["us_a_task"],
        },
    }


def depth(rounds: int) -> Figures:
    """What a task costs the machine while 100 to 100,000 jobs wait for 100 replicas."""
    rows = []
    for waiting in (100, 1000, 10_000, 100_000):
        costs_us = []
        for _ in range(rounds):
            gc.collect()
            trace = production(waiting + 3000, 100, load=0.85, seed=1)
            costs_us.append(Cluster(trace, 100, memory_gb=MEMORY_GB, closed=waiting + 100).run().us_a_task)
        rows.append({"waiting": waiting, "us_a_task": min(costs_us)})
    return {
        "rows": rows,
        "targets": {"cost of 100,000 <= 1.2 of 100": rows[-1]["us_a_task"] <= 1.2 * rows[0]["us_a_task"]},
    }


def models(rounds: int) -> Figures:
    """Loads of four models on eight replicas that hold one each: all jobs at once, and at random moments.

    Where all come at once, the plan to compare with fills one replica after another, model by model (McNaughton 1959):
    it ends as soon as any can, with as many loads as there are replicas and models less one. Else it is a lower bound
    of all plans in which no job takes longer than in ours.
    """
    rows = []
    for load in (0.0, 0.7, 0.85, 0.95):
        trace = four_models(800, 8, load=load)
        outcome, plain = Cluster(trace, 8, memory_gb=8.0).run(), fifo(trace, 8, 8.0)
        within_s = outcome.wait_s(1.0) + trace[0].model.load_s + trace[0].work_s
        least, proven = (8 + 4 - 1, True) if load == 0 else fewest_loads(trace, 8, within_s, 10.0, LIMIT_S)
        row = {"load": load, **_row(outcome), "fifo_loads": plain.loads, "fifo_p99_s": plain.wait_s(0.99)}
        rows.append({**row, "offline_loads": least, "proven": proven})
    return {
        "rows": rows,
        "targets": {
            "loads <= 1/3 of FIFO's": all(3 * row["loads"] <= row["fifo_loads"] for row in rows),
            "loads <= 1.5 of offline": all(row["loads"] <= 1.5 * row["offline_loads"] for row in rows),
        },
    }


def scaling(rounds: int) -> Figures:
    """Replicas by the seconds that wait, and by the tasks that wait: what they cost, and how long jobs wait."""
    trace = production(6000, 20, load=0.5, seed=5)
    rows = []
    rules: Mapping[str, Callable[[Demand], int]] = {
        "count": lambda demand: replicas_by_count(demand, 1),
        "30 s": lambda demand: replicas_by_seconds(demand, 1, 30.0),
        "60 s": lambda demand: replicas_by_seconds(demand, 1, 60.0),
    }
    for name, rule in rules.items():
        outcome = Cluster(trace, 1, memory_gb=MEMORY_GB, start_s=60.0, scaler=rule).run()
        rows.append({"rule": name, **_row(outcome), "replica_hours": outcome.replica_s / 3600})
    return {"rows": rows, "targets": {}}


def cells(rounds: int) -> Figures:
    """A thousand replicas under one scheduler, and cut into four cells by tenant."""
    trace = production(20_000, 1000, load=0.85, seed=9, tenants=200)
    rows = [{"cells": "1", **_row(Cluster(trace, 1000, memory_gb=MEMORY_GB, failures_s=FAILURES_S).run())}]
    for spill in (False, True):
        shares = routed(trace, 4, 250, spill=spill)
        outcomes = [Cluster(share, 250, memory_gb=MEMORY_GB, failures_s=FAILURES_S).run() for share in shares]
        rows.append({"cells": "4, with spill" if spill else "4, by hash alone", **_row(_together(outcomes))})
    return {"rows": rows, "targets": {}}


def fairness(rounds: int) -> Figures:
    """A tenant that has all its jobs in the queue from the start, beside three that ask for more than their share.

    jain: Jain's index of what each has had over its weight: 1 if that is equal, 1/4 if one has all. light: the waits of
    the three where they ask for half of their share. order: the same where the machine knows no tenants.
    """
    rows = []
    span_s = 3600.0
    for replicas, models in ((4, "one each"), (4, "87"), (20, "87")):
        for name, weights in (("equal", (1.0, 1.0, 1.0, 1.0)), ("1:4:2:1", (1.0, 4.0, 2.0, 1.0))):
            of = dict(zip(("flood", "a", "b", "c"), weights, strict=True))
            shares = {tenant: weight / sum(weights) for tenant, weight in of.items()}
            row: Figures = {"replicas": replicas, "models": models, "weights": name}
            for kind, of_share in (("heavy", 1.3), ("light", 0.5)):
                demands = {tenant: of_share * share for tenant, share in shares.items()} | {"flood": 1.5}
                trace = flood(replicas, span_s, demands=demands, flooding="flood", one_model=models == "one each")
                for rule, given in (("", of), ("order_", None)):
                    cluster = Cluster(trace, replicas, memory_gb=MEMORY_GB, until_s=span_s, weights=given)
                    outcome = cluster.run()
                    if kind == "heavy":
                        row |= {f"{rule}jain": jain(outcome.had_s, of), f"{rule}loads": outcome.loads}
                        row[f"{rule}efficiency"] = outcome.efficiency
                    else:
                        # Who has not started has waited for as long as it has been there.
                        waited = [(n, r) for n, r in enumerate(trace) if r.tenant != "flood"]
                        start_s = {n: r.at_s + outcome.waits_s[n] for n, r in waited if n in cluster.started}
                        waits_s = sorted(start_s.get(n, span_s) - r.at_s for n, r in waited)
                        row[f"{rule}light_p99_s"] = waits_s[int(0.99 * len(waits_s))]
            rows.append(row)
    return {"rows": rows, "targets": {"jain >= 0.95": min(row["jain"] for row in rows) >= 0.95}}


def jain(had_s: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return Jain's fairness index of what tenants have had over their weights (Jain, Chiu and Hawe 1984)."""
    shares = [had_s.get(tenant, 0.0) / weight for tenant, weight in weights.items()]
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


PARTS: Mapping[str, Callable[[int], Figures]] = {
    "size": size,
    "depth": depth,
    "models": models,
    "scaling": scaling,
    "cells": cells,
    "fairness": fairness,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"default: all of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3, help="of what is timed (default: %(default)s)")
    parser.add_argument("--no-write", dest="write", action="store_false", help="print only")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    collector.collect_rarely()
    document: Figures = {"load_before": os.getloadavg()[0], "cores": os.cpu_count()}
    for name in arguments.parts:
        document[name] = figures = PARTS[name](arguments.rounds)
        print(f"{name}: {PARTS[name].__doc__}")
        for row in figures["rows"]:
            print("  ", "  ".join(f"{key}={_shown(value)}" for key, value in row.items()), flush=True)
        for target, met in figures["targets"].items():
            print("  ", target, "met" if met else "MISSED", flush=True)
    if arguments.write:
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-simulate.json"
        earlier = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(earlier | document, indent=1) + "\n")
        print(path)
    return int(not all(met for name in arguments.parts for met in document[name]["targets"].values()))


def _row(outcome: Outcome) -> Figures:
    """Return what of an outcome does not depend on this machine."""
    return {
        "jobs": outcome.tasks,
        "efficiency": outcome.efficiency,
        "loading": outcome.loading_s / outcome.possible_s,
        "idle": outcome.idle_s / outcome.possible_s,
        "wasted": (outcome.possible_s - outcome.work_s - outcome.loading_s - outcome.idle_s) / outcome.possible_s,
        "p50_s": outcome.wait_s(0.5),
        "p99_s": outcome.wait_s(0.99),
        "max_s": outcome.wait_s(1.0),
        "loads": outcome.loads,
        "ahead": outcome.ahead,
        "lora_loads": outcome.lora_loads,
        "loras_ahead": outcome.loras_ahead,
        "lost": outcome.lost,
        "most_holders": max(outcome.most_holders.values(), default=0),
    }


def _together(outcomes: list[Outcome]) -> Outcome:
    whole = Outcome([wait_s for outcome in outcomes for wait_s in outcome.waits_s])
    for outcome in outcomes:
        whole.most_holders += outcome.most_holders
        for name in (
            "loads",
            "ahead",
            "lora_loads",
            "loras_ahead",
            "work_s",
            "loading_s",
            "possible_s",
            "idle_s",
            "cpu_s",
            "tasks",
            "lost",
            "replica_s",
        ):
            setattr(whole, name, getattr(whole, name) + getattr(outcome, name))
        whole.end_s = max(whole.end_s, outcome.end_s)
    return whole


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
