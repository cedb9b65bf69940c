"""Commands for jobs: submit, watch, queue, jobs, history, cancel, story; and for workflows: compare, convert."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.commands import options
from serve_app.cli.commands.options import PATIENCE_S, SERVER
from serve_app.cli.lines import print_json, print_line

app = typer.Typer()
Workflow = Annotated[Path, typer.Argument(help="a workflow, as the web page saves it or in API format")]
Limit = Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="jobs")]
Job = Annotated[str, typer.Argument(help="the id that submit printed")]


class State(StrEnum):
    """The state of a job, as the web page names it."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@app.command()
def submit(
    workflow: Workflow,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NODE.INPUT=VALUE",
            help="change an input, e.g. --set 3.seed=7; VALUE is JSON, else a string; may be repeated",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="share no computation with other jobs: equal jobs are equal to the bit"),
    ] = False,
    out: options.Out = Path("."),
    detach: Annotated[
        bool, typer.Option("--detach", help="print the job's id once it is queued; watch it later")
    ] = False,
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Run a workflow and save its images."""
    from serve_app.cli.convert import served_classes
    from serve_app.cli.server import ServerClient
    from serve_app.cli.submit import submit_job
    from serve_app.cli.workflow import read_workflow, with_assignments
    from serve_app.graph.workflow_name import NAME_KEY

    with ServerClient(server, patience) as client:
        body = with_assignments(read_workflow(workflow, lambda: served_classes(client)), assignments or [])
        # Lists of jobs show the name.
        body["extra_data"] = {NAME_KEY: workflow.stem, **(body.get("extra_data") or {})}
        if strict:
            body["extra_data"]["strict"] = True
        return submit_job(client, body, out, detach=detach, as_json=as_json)


@app.command()
def watch(
    job: Job,
    out: options.Out = Path("."),
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Follow a job to its end and save its images."""
    from serve_app.cli.server import ServerClient
    from serve_app.cli.submit import watch_job

    with ServerClient(server, patience) as client:
        return watch_job(client, job, out, as_json=as_json)


@app.command()
def compare(
    workflow: Workflow,
    pools: Annotated[
        tuple[str, str], typer.Option(metavar="POOL POOL", help="pools to compare; shared is all that share workflows")
    ] = ("shared", "comfyui"),
    tolerance: Annotated[float, typer.Option(metavar="N", help="largest difference, of 255")] = 1.0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="for the pictures")] = Path("."),
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Run a workflow on two kinds of pool and compare what they save."""
    from serve_app.cli.compare import compare_pools
    from serve_app.cli.convert import served_classes
    from serve_app.cli.server import ServerClient
    from serve_app.cli.workflow import read_workflow

    with ServerClient(server, patience) as client:
        body = read_workflow(workflow, lambda: served_classes(client))
        return compare_pools(client, body, pools, tolerance, out, as_json=as_json)


@app.command()
def convert(
    workflow: Annotated[Path, typer.Argument(help="the saved workflow")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="where to write it (default: print it)")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="know the built-in node classes, and ask no server")
    ] = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Turn a workflow that the web page saved into API format."""
    from serve_app.cli.convert import own_classes, served_classes, write_api_format
    from serve_app.cli.server import ServerClient
    from serve_app.cli.workflow import read_workflow

    with ServerClient(server, patience) as client:
        classes = own_classes if offline else lambda: served_classes(client)
        return write_api_format(read_workflow(workflow, classes), output)


@app.command()
def queue(
    as_json: options.Json = False, server: options.Server = SERVER, patience: options.Patience = PATIENCE_S
) -> int:
    """List the jobs that run and wait, the next to start first: owner, model, place, about how long they wait."""
    from dataclasses import asdict

    from serve_app.cli.queue import queue_lines, queued_jobs
    from serve_app.cli.server import ServerClient

    with ServerClient(server, patience) as client:
        found = queued_jobs(client.get("/api/queue"), client.get("/status"))
    if as_json:
        print_json([asdict(job) for job in found])
    else:
        for line in queue_lines(found):
            print_line(line)
    return 0


@app.command("jobs")
def list_jobs(
    state: Annotated[list[State] | None, typer.Option(help="only these; may be repeated")] = None,
    limit: Limit = 20,
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """List jobs, the newest first."""
    return _list(state or list(State), limit, as_json, server, patience)


@app.command()
def history(
    limit: Limit = 20,
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """List the jobs that have ended, the newest first."""
    return _list([State.COMPLETED, State.FAILED, State.CANCELLED], limit, as_json, server, patience)


@app.command()
def cancel(
    job: Annotated[str | None, typer.Argument(help="the id that submit printed")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="all jobs that run or wait and are this key's to cancel")
    ] = False,
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="all jobs of a tenant")] = None,
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Cancel a job that has not ended, or many."""
    from serve_app.cli.cancel import cancel_all, cancel_tenant
    from serve_app.cli.server import ServerClient

    if [job is not None, every, tenant is not None].count(True) != 1:
        raise typer.BadParameter("give a job, --all or --tenant NAME")
    with ServerClient(server, patience) as client:
        if job is None:
            cancelled = cancel_all(client) if tenant is None else cancel_tenant(client, tenant)
            if as_json:
                print_json({"cancelled": cancelled})
            else:
                print_line(f"{cancelled} jobs are cancelled")
            return 0
        answer = client.post(f"/jobs/{job}/cancel", {})
    if as_json:
        print_json(answer)
    else:
        print_line("cancelled" if answer["cancelled"] else f"{job} has ended already, or no job has this id")
    return 0 if answer["cancelled"] else 1


@app.command()
def story(
    job: Job, as_json: options.Json = False, server: options.Server = SERVER, patience: options.Patience = PATIENCE_S
) -> int:
    """Show what happened lately to a job that has not ended."""
    from serve_app.cli import pages
    from serve_app.cli.server import ServerClient

    with ServerClient(server, patience) as client:
        return pages.print_answer(pages.event_lines, client.get(f"/status/{job}"), as_json=as_json)


def _list(states: list[State], limit: int, as_json: bool, server: str, patience: float) -> int:
    from serve_app.cli.pages import print_answer
    from serve_app.cli.queue import job_lines
    from serve_app.cli.server import ServerClient

    with ServerClient(server, patience) as client:
        answer = client.get("/api/jobs", status=",".join(states), limit=limit)
    return print_answer(job_lines, answer, as_json=as_json)
