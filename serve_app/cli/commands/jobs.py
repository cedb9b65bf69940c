"""Commands for jobs: submit, watch, cancel, story; and for workflows: compare, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.commands import options
from serve_app.cli.commands.options import PATIENCE_S, SERVER
from serve_app.cli.lines import print_json, print_line

app = typer.Typer()
Workflow = Annotated[Path, typer.Argument(help="a workflow, as the web page saves it or in API format")]
Job = Annotated[str, typer.Argument(help="the id that submit printed")]


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

    with ServerClient(server, patience) as client:
        body = with_assignments(read_workflow(workflow, lambda: served_classes(client)), assignments or [])
        if strict:
            body["extra_data"] = {**(body.get("extra_data") or {}), "strict": True}
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
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Run a workflow on two kinds of pool and compare what they save."""
    from serve_app.cli.compare import compare_pools
    from serve_app.cli.convert import served_classes
    from serve_app.cli.server import ServerClient
    from serve_app.cli.workflow import read_workflow

    with ServerClient(server, patience) as client:
        return compare_pools(client, read_workflow(workflow, lambda: served_classes(client)), pools, tolerance, out)


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
def cancel(
    job: Job, as_json: options.Json = False, server: options.Server = SERVER, patience: options.Patience = PATIENCE_S
) -> int:
    """Cancel a job that has not ended."""
    from serve_app.cli.server import ServerClient

    with ServerClient(server, patience) as client:
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
