"""The output of `serve-app models`, `nodes`, `status` and `story`, line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from serve_app.cli.lines import print_json, print_line
from serve_app.store.models.catalog import DRAWING, no_models


def print_answer(page: Callable[[Any], Iterator[str]], answer: Any, *, as_json: bool) -> int:
    """Print an answer line by line, or as JSON; return the exit status."""
    if as_json:
        print_json(answer)
    else:
        for line in page(answer):
            print_line(line)
    return 0


def model_lines(answer: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield every model file as folder/name, a note for empty folders, and a hint if there is no model to sample."""
    for folder, names in answer.items():
        yield from (f"{folder}/{name}" for name in names)
        if not names:
            yield f"{folder}/ (no files)"
    if not any(answer.get(folder) for folder in DRAWING):
        yield no_models()


def node_lines(answer: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield every node class with its category and outputs."""
    width = max(map(len, answer), default=0)
    for name, spec in answer.items():
        yield f"{name:<{width}}  {spec['category'] or '-'}  → {', '.join(spec['outputs']) or 'saved files'}"


def status_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield jobs, hosts with their GPUs, and replicas with their loaded models."""
    jobs = answer["jobs"]
    yield f"up {answer['uptime_s']:.0f} s, {jobs['running']} jobs running, {jobs['pending']} waiting"
    for pause in answer["paused"]:
        since = datetime.fromtimestamp(pause["since_s"]).isoformat(" ", "seconds")
        yield f"paused since {since}: {pause['kind']} {pause['name']}".rstrip()
    for drain in answer["drained"]:
        since = datetime.fromtimestamp(drain["since_s"]).isoformat(" ", "seconds")
        yield f"drained since {since}: {drain['kind']} {drain['name']}"
    yield from map(backoff_line, answer["backoffs"])
    for host in answer["hosts"]:
        yield f"host {host['host']}: {host['ram_available_mb']} of {host['ram_total_mb']} MB memory available"
        for gpu in host["gpus"]:
            yield f"  {gpu['name']}: {gpu['vram_free_mb']} of {gpu['vram_total_mb']} MB free"
    for replica in answer["replicas"]:
        held = ", ".join(replica["recipes"]) or "no model"
        running = f"{replica['running']} of {replica['slots']} tasks"
        kept = f", kept for job {replica['quarantined']} alone" if replica["quarantined"] else ""
        kept += ", takes no more tasks" if replica["draining"] else ""
        kept += f", {state}" if (state := drain_state(replica)) else ""
        yield f"replica {replica['replica_id']} ({replica['pool']}): {running}, holds {held}{kept}"
        yield from (f"  {note}" for note in replica["notes"])
    for trouble in answer["troubles"]:
        yield f"replica {trouble['replica_id']} ({trouble['pool']}) cannot work: {trouble['why']}"


def drain_state(replica: Mapping[str, Any]) -> str:
    """Return whether a replica that an operator drains still has tasks; "" if it is not drained."""
    if not replica["drained"]:
        return ""
    return "drains" if replica["running"] else "drained"


def backoff_line(one: Mapping[str, Any]) -> str:
    """Return the owner of jobs that ended replicas, and how long its next jobs wait."""
    whose = f"tenant {one['tenant']}" if one["tenant"] else f"client {one['client_id'] or '(without an id)'}"
    waits = f"its jobs wait {one['wait_s']:.0f} s" if one["wait_s"] > 0 else "its jobs wait no longer"
    return f"{whose} has ended {one['losses']} replicas: {waits}{', and run alone' if one['alone'] else ''}"


def event_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield a job's state and its latest events."""
    yield f"job {answer['job_id']}: {answer['state']}, {answer['percent']} %"
    for line in answer["story"]:
        at = datetime.fromtimestamp(line["at_s"]).isoformat(" ", "milliseconds")
        yield f"{at}  {line['what']}"
