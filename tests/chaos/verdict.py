"""What has to be true once a campaign is over, whatever happened meanwhile. Every function returns violations."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serve_app.events import ENDINGS
from tests.chaos.clients import Book, Caller, Entry, Listener
from tests.chaos.jobs import Draw
from tests.chaos.site import SLOTS
from tests.chaos.target import Target

QUIET_S = 120.0
"""How long an idle server may take to say that it is."""
TOLD_S = 60.0
SWEPT_S = 240.0
"""How long after the last job's end the server may keep files that nobody recorded."""
STORE_WORDS = ("Operation not permitted", "Permission denied", "Read-only")
"""Why a file could not be saved while files could not be saved."""


def lost(book: Book) -> Iterator[str]:
    """Every job that was accepted has ended, and one whose cancel was answered true in nothing else."""
    for job_id, entry in book.entries.items():
        if entry.state is None:
            yield f"lost: job {job_id} ({entry.job.kind}) of client {entry.client} has not ended"
        elif entry.withdrawn and entry.state != "cancelled":
            yield f"job {job_id} ({entry.job.kind}) was cancelled, said the answer, and ended in {entry.state}"


def ends(book: Book, caller: Caller, windows: Sequence[tuple[float, float]]) -> Iterator[str]:
    """Every job ended once and as it may, and says why if not in success."""
    for job_id, entry in book.entries.items():
        if entry.state not in ENDINGS:
            continue
        shown = caller.ask("GET", f"/history/{job_id}")[job_id]
        reason = "; ".join(shown["status"]["messages"])
        if shown["status"]["status_str"] != entry.state:
            yield f"job {job_id} ({entry.job.kind}) ended in {entry.state} and now is {shown['status']['status_str']}"
        if entry.state not in entry.job.allowed and not _excused(entry, reason, windows):
            yield f"job {job_id} ({entry.job.kind}) ended in {entry.state}: {reason[:300]}"
        if entry.state == "error" and entry.job.poison is not None and entry.job.poison not in reason:
            yield f"job {job_id} ended by {entry.job.poison}, which its message does not name: {reason[:300]}"
        saved = _files(shown["outputs"])
        if entry.state == "success" and len(saved) != entry.job.saves:
            yield f"job {job_id} ({entry.job.kind}) saved {saved} instead of {entry.job.saves} files"
        yield from _events(job_id, entry, caller)


def _events(job_id: str, entry: Entry, caller: Caller) -> Iterator[str]:
    told = caller.ask("GET", f"/jobs/{job_id}/events?after=0&timeout_s=0")
    kinds = [event["kind"] for event in told["events"]]
    seqs = [event["seq"] for event in told["events"]]
    if [kind for kind in kinds if kind in ENDINGS] != [entry.state] or kinds[-1] != entry.state:
        yield f"job {job_id} ({entry.job.kind}) ended in {entry.state}, and its events are {kinds}"
    if sorted(set(seqs)) != seqs or not told["last"]:
        yield f"the events of job {job_id} are not in order, or have no last: {seqs}"
    executed = Counter(event["data"]["node"] for event in told["events"] if event["kind"] == "executed")
    if any(count > 1 for count in executed.values()):
        yield f"job {job_id} ({entry.job.kind}) recorded an output twice: {dict(executed)}"


def unswept(site: Target, history: Mapping[str, Any]) -> Iterator[str]:
    """The server removes by itself what jobs saved and did not come to record."""
    recorded = {file for entry in history.values() for file in _files(entry["outputs"])}
    deadline = time.monotonic() + SWEPT_S
    while (left := site.saved() - recorded) and time.monotonic() < deadline:
        time.sleep(1.0)
    yield from (f"unrecorded: no job recorded the file {file}" for file in left)


def files(site: Target, history: Mapping[str, Any], *, swept: bool) -> Iterator[str]:
    """Every output is some job's, once, and is there, once the server is stopped; `serve-app check` sees that too.

    swept: it has nothing to mend.
    """
    status, said = site.check()
    if status != 0 or (swept and "; removed" in said):
        yield f"`serve-app check` ended with {status}: {said}"
    recorded = {file for entry in history.values() for file in _files(entry["outputs"])}
    made: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
    for entry in history.values():
        for file in _files(_made(entry)):
            made[file].append(entry["native"] and entry["native"]["prompt"][2])
    saved = site.saved()
    # Equal jobs that are unfinished at once are computed once, and both name its file.
    for file, prompts in made.items():
        if any(prompt != prompts[0] for prompt in prompts):
            yield f"doubled: {len(prompts)} jobs made the file {file}"
    yield from (f"the recorded file {file} is not there" for file in recorded - saved)
    yield from (f"unrecorded: no job recorded the file {file}" for file in saved - recorded)


def times(caller: Caller) -> Iterator[str]:
    """No job ended before it started, or started before it was there."""
    for job in caller.ask("GET", "/api/jobs?limit=1000")["jobs"]:
        moments = [job[name] for name in ("create_time", "execution_start_time", "execution_end_time") if name in job]
        if moments != sorted(moments):
            yield f"job {job['id']} was there, started and ended at {moments}"


def sockets(listeners: Mapping[str, Listener], book: Book) -> tuple[list[str], int]:
    """No client was told another end of a job than it had. Returns also how many ends their clients never heard of.

    That is no violation: what a socket's kernel or proxy had taken when it died counts as sent.
    """
    expected = {
        job_id: entry
        for job_id, entry in book.entries.items()
        if entry.client in listeners and entry.state in ("success", "error")
    }
    deadline = time.monotonic() + TOLD_S
    while time.monotonic() < deadline and any(j not in listeners[e.client].told for j, e in expected.items()):
        time.sleep(0.2)
    told = {job_id: listeners[entry.client].told.get(job_id, set()) for job_id, entry in expected.items()}
    wrong = [
        f"job {job_id} ({entry.job.kind}) ended in {entry.state}; its client heard {told[job_id]}"
        for job_id, entry in expected.items()
        if told[job_id] - {str(entry.state)}
    ]
    return wrong, sum(not heard for heard in told.values())


def idle(caller: Caller, replicas: int | None) -> Iterator[str]:
    """Nothing runs, nothing waits, and every slot of every replica is free. replicas: None for any number of them."""
    deadline = time.monotonic() + QUIET_S
    while True:
        status = caller.ask("GET", "/status")
        running = [replica["running"] for replica in status["replicas"]]
        busy = {"jobs": status["jobs"], "replicas": running}
        whole = len(running) if replicas is None else replicas
        if busy == {"jobs": {"running": 0, "pending": 0}, "replicas": [0] * whole}:
            return
        if time.monotonic() > deadline:
            yield f"with every job ended the server is not idle, or not whole: {busy}"
            return
        time.sleep(0.5)


def full_width(caller: Caller, draw: Draw, replicas: int | None) -> Iterator[str]:
    """One replica runs as many tasks at once as it has slots: what ended has freed what it had."""
    # With more replicas a meeting would be spread over them.
    if replicas != 1:
        return
    batch = draw.batch(SLOTS)
    for job in batch:
        caller.ask("POST", "/prompt", {"prompt": job.prompt, "prompt_id": job.job_id})
    for job in batch:
        if (state := ended(caller, str(job.job_id))) != "success":
            yield f"of {SLOTS} jobs that have to run at the same time one ended in {state}"
            return


def pace_s(caller: Caller, draw: Draw) -> float:
    """Return how long a batch of equal size takes that shares nothing with what has been computed."""
    began = time.monotonic()
    for job in (batch := draw.fresh(SLOTS)):
        caller.ask("POST", "/prompt", {"prompt": job.prompt, "prompt_id": job.job_id})
    for job in batch:
        ended(caller, str(job.job_id))
    return time.monotonic() - began


def ended(caller: Caller, job_id: str, patience_s: float = QUIET_S) -> str:
    """Return how a job ended, or how it stands once patience is over."""
    deadline = time.monotonic() + patience_s
    while True:
        state = str(caller.ask("GET", f"/history/{job_id}")[job_id]["status"]["status_str"])
        if state in ENDINGS or time.monotonic() > deadline:
            return state
        time.sleep(0.1)


def recorded(caller: Caller, book: Book) -> dict[str, Any]:
    """Return what the history holds by job, as either dialect shows it; also of jobs that no client knows of."""
    native = caller.ask("GET", "/api/history")
    # ComfyUI's own has no job that was cancelled before it started.
    return {
        job_id: {**caller.ask("GET", f"/history/{job_id}")[job_id], "native": native.get(job_id)}
        for job_id in sorted(native.keys() | book.entries.keys())
    }


def unfinished(caller: Caller) -> Iterator[str]:
    """Every job that the server has is at its end, also one whose acceptance its client never heard of."""
    page = caller.ask("GET", "/api/jobs?status=pending,in_progress&limit=1000")
    for job in page["jobs"]:
        yield f"lost: the server has job {job['id']} as {job['status']}"


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """The history is the same after a restart."""
    if before.keys() != after.keys():
        yield f"a restart changed which jobs are in the history: {sorted(before.keys() ^ after.keys())[:5]}"
    different = [job_id for job_id in before.keys() & after.keys() if before[job_id] != after[job_id]]
    for job_id in different[:3]:
        parts = [key for key in before[job_id] if before[job_id][key] != after[job_id][key]]
        was, now = ({part: entry[job_id][part] for part in parts} for entry in (before, after))
        yield f"a restart changed {parts} of job {job_id} (of {len(different)}): {str(was)[:400]}; {str(now)[:400]}"


def _excused(entry: Entry, reason: str, windows: Sequence[tuple[float, float]]) -> bool:
    during = any(entry.accepted_s < end and entry.ended_s > begin for begin, end in windows)
    return during and entry.state == "error" and any(word in reason for word in STORE_WORDS)


def _made(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a job's own nodes show: the same workflow once more is answered with the files that there are."""
    # Only ComfyUI's dialect tells which nodes were cached; it has no job that was cancelled before it started.
    messages = dict(entry["native"]["status"]["messages"]) if entry["native"] else {}
    cached = set(messages.get("execution_cached", {}).get("nodes", ()))
    return {node: shown for node, shown in entry["outputs"].items() if node not in cached}


def _files(outputs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (subfolder, filename) of every file that a job saved as an output."""
    images = [image for output in outputs.values() for image in output.get("images", ())]
    return [(image.get("subfolder", ""), image["filename"]) for image in images if image["type"] == "output"]
