"""`serve-app submit` and `watch`: queue a workflow, follow a job to its end, save its output files."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from serve_app.cli.lines import print_json, print_line
from serve_app.cli.progress import Show, progress
from serve_app.cli.server import ServerClient
from serve_app.errors import FileMissingError, ServeAppError, ServerUnreachableError

POLL_S = 20
CANCEL_PATIENCE_S = 5.0
VIEW = "/api/view"
"""The route for files of every kind; the contract's own /view has images only."""


def submit_job(
    server: ServerClient, body: Mapping[str, Any], directory: Path, *, detach: bool = False, as_json: bool = False
) -> int:
    """Submit a job, follow it, save its files and print their paths; return the exit status. Ctrl-C cancels the job.

    detach: print the job's id once it is queued, and leave it to `watch_job`. as_json: print {job_id, files} instead.
    The job's id is chosen here, so a retry after a lost connection queues nothing twice.
    """
    job_id = body.get("prompt_id", str(uuid.uuid4()))
    try:
        server.post("/prompt", {**body, "prompt_id": job_id})
        if detach:
            if as_json:
                print_json({"job_id": job_id})
            else:
                print_line(job_id)
            return 0
        print_line(f"job {job_id}", error=True)
        with progress(body["prompt"]) as show:
            follow(server, job_id, show)
    except KeyboardInterrupt:
        _cancel(server, job_id)
        raise
    return _saved(server, job_id, directory, as_json=as_json)


def watch_job(server: ServerClient, job_id: str, directory: Path, *, as_json: bool = False) -> int:
    """Follow a queued job from its beginning; as `submit_job`, but Ctrl-C does not cancel it."""
    graph = server.get(f"/api/v2/jobs/{job_id}/workflow")["workflow"]
    with progress(graph) as show:
        follow(server, job_id, show)
    return _saved(server, job_id, directory, as_json=as_json)


def _saved(server: ServerClient, job_id: str, directory: Path, *, as_json: bool) -> int:
    """Save an ended job's files and print their paths; return the exit status."""
    entry = server.get(f"/history/{job_id}").get(job_id)
    if entry is None:
        raise ServerUnreachableError(f"{server.url} no longer knows the job {job_id}")
    status = entry["status"]
    if not status["completed"]:
        print_line(f"serve-app: {status['status_str']}: {'; '.join(status['messages'])}", error=True)
        return 1
    paths = (str(save(server.download(VIEW, **file), file, directory)) for file in output_files(entry["outputs"]))
    if as_json:
        print_json({"job_id": job_id, "files": list(paths)})
        return 0
    for path in paths:
        print_line(path)
    return 0


def follow(server: ServerClient, job_id: str, show: Show) -> None:
    """Show a job's events until its last; resume after a lost connection."""
    after, last = 0, False
    while not last:
        stretch = server.get(f"/jobs/{job_id}/events", after=after, timeout_s=POLL_S)
        for event in stretch["events"]:
            after = event["seq"]
            show(event["kind"], event["data"])
        last = stretch["last"]


def output_files(outputs: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield {filename, subfolder, type} of every output file of a job's nodes, each once."""
    seen: list[dict[str, str]] = []
    for ui in outputs.values():
        for file in node_files(ui):
            if file not in seen:
                seen.append(file)
                yield file


def node_files(ui: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield every output file of a node, of any kind, as `output_files`."""
    for items in ui.values():
        for item in items if isinstance(items, list) else ():
            if isinstance(item, Mapping) and "filename" in item and "type" in item:
                yield {name: str(item.get(name, "")) for name in ("filename", "subfolder", "type")}


def save(data: bytes, file: Mapping[str, str], directory: Path) -> Path:
    """Write a file under its server's name and return the path.

    An existing file stays: the same content is not written again, other content gets a number after its name. Errors:
    FileMissingError for a name that leaves the directory.
    """
    named = f"{file['subfolder']}/{file['filename']}".lstrip("/")
    root = directory.resolve()
    try:
        target = (root / named).resolve()
    except ValueError:  # NUL
        target = root
    if target == root or not target.is_relative_to(root):
        raise FileMissingError(f"the server's file '{named}' would lie outside {directory}; it is not saved")
    target.parent.mkdir(parents=True, exist_ok=True)
    path, count = target, 1
    while True:
        try:
            with path.open("xb") as written:
                written.write(data)
            return path
        except FileExistsError:
            if path.is_file() and path.read_bytes() == data:
                return path
            count += 1
            path = target.with_stem(f"{target.stem}_{count}")


def _cancel(server: ServerClient, job_id: str) -> None:
    """Cancel the job of an interrupted command, without waiting for long."""
    try:
        with ServerClient(server.url, CANCEL_PATIENCE_S) as impatient:
            cancelled = impatient.post(f"/jobs/{job_id}/cancel", {})["cancelled"]
        print_line(f"job {job_id} {'cancelled' if cancelled else 'had ended already'}", error=True)
    except ServeAppError as error:
        print_line(f"serve-app: job {job_id} may still run: {error}", error=True)
