"""`serve-app top`: the cluster on one screen, refreshed until Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serve_app.cli.lines import print_json
from serve_app.cli.pages import backoff_line, drain_state
from serve_app.cli.queue import QueuedJob, queued_jobs
from serve_app.cli.server import ServerClient
from serve_app.printable import printable

JOBS = 15
"""The jobs on the screen; the others are counted."""
Status = Mapping[str, Any]
"""The answer of `GET /status`."""


def watch_cluster(server: ServerClient, every_s: float, *, once: bool) -> int:
    """Show the cluster every `every_s` seconds, or once if `once` or if standard output is no terminal."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    earlier, now, now_s = None, server.get("/status"), time.monotonic()
    first = screen(now, _unended(server, now))
    if once or not sys.stdout.isatty():
        console.print(first)
        return 0
    with Live(first, console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            earlier, earlier_s = now, now_s
            now, now_s = server.get("/status"), time.monotonic()
            live.update(screen(now, _unended(server, now), earlier, now_s - earlier_s), refresh=True)


def print_cluster(server: ServerClient) -> int:
    """Print the status and the unfinished jobs once, as JSON."""
    now = server.get("/status")
    print_json({**now, "unfinished": [asdict(job) for job in _unended(server, now)]})
    return 0


def _unended(server: ServerClient, now: Status) -> list[QueuedJob]:
    return queued_jobs(server.get("/api/queue"), now)


def screen(
    now: Status, jobs: Sequence[QueuedJob] = (), earlier: Status | None = None, since_s: float = 0.0
) -> RenderableType:
    """Return the screen. jobs: those that have not ended. earlier: the status of since_s ago, for rates."""
    return Group(_jobs(now, earlier, since_s), *_paused(now), *_queue(jobs), _pools(now), _replicas(now), _hosts(now))


def _jobs(now: Status, earlier: Status | None, since_s: float) -> Text:
    load = now["load"]
    ended = ", ".join(f"{count} {state}" for state, count in sorted(load["ended"].items())) or "none yet"
    line = f"up {now['uptime_s']:.0f} s · {load['running']} jobs running, {load['queued']} waiting"
    if load["queued"]:
        line += f" (the oldest for {load['oldest_s']:.0f} s)"
    line += f" · ended: {ended}"
    # The counters of a new scheduler start at zero.
    if earlier is not None and since_s > 0 and earlier["epoch"] == now["epoch"]:
        more = sum(load["ended"].values()) - sum(earlier["load"]["ended"].values())
        line += f" · {60 * more / since_s:.1f} a minute"
    # A server of an earlier release has none.
    if moved := {how: count for how, count in load.get("moved", {}).items() if count}:
        tasks = ", ".join(f"{count} {how.replace('_', ' ')}" for how, count in sorted(moved.items()))
        line += f" · went on elsewhere: {tasks}, {load['repeated_steps']} steps again"
    return Text(printable(line), style="bold")


def _paused(now: Status) -> list[Text]:
    held = ", ".join(f"{pause['kind']} {pause['name']}".rstrip() for pause in now["paused"])
    waiting = [backoff_line(one) for one in now["backoffs"] if one["wait_s"] > 0]
    lines = [f"paused: {held}"] if held else []
    return [Text(printable(line), style="bold yellow") for line in (*lines, *waiting)]


def _queue(jobs: Sequence[QueuedJob]) -> list[RenderableType]:
    table = _table("place", "job", "owner", "model")
    for job in jobs[:JOBS]:
        _add(table, *job.cells())
    more = [Text(f"and {len(jobs) - JOBS} more", style="dim")] if len(jobs) > JOBS else []
    return [table, *more] if jobs else []


def _pools(now: Status) -> Table:
    table = _table("pool", "replicas", "waiting", "running")
    for pool in now["load"]["pools"]:
        _add(table, pool["pool"], *(str(pool[key]) for key in ("replicas", "waiting", "running")))
    return table


def _replicas(now: Status) -> Table:
    table = _table("replica", "pool", "host", "tasks", "holds", "")
    for replica in now["replicas"]:
        tasks = f"{replica['running']}/{replica['slots']}"
        loaded = ", ".join(replica["recipes"]) or "no model"
        hosts = ", ".join([replica["host"], *replica["rank_hosts"]])
        _add(table, replica["replica_id"], replica["pool"], hosts, tasks, loaded, drain_state(replica))
    return table


def _hosts(now: Status) -> Table:
    table = _table("host", "device", "used", "of MB")
    for host in now["hosts"]:
        used = _share(host["ram_used_mb"], host["ram_total_mb"])
        _add(table, host["host"], "memory", used, str(host["ram_total_mb"]))
        for gpu in host["gpus"]:
            used = _share(gpu["vram_used_mb"], gpu["vram_total_mb"])
            _add(table, "", gpu["name"], used, str(gpu["vram_total_mb"]))
    return table


def _share(used: int, total: int) -> str:
    return f"{100 * used / total:.0f} %" if total else "–"


def _add(table: Table, *cells: str) -> None:
    """Add a row of plain text, without rich's markup."""
    table.add_row(*(Text(printable(cell)) for cell in cells))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
