"""Commands for operators of a running server: nodes, models, the cluster, its log, pauses and drains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

import typer

from serve_app.cli.commands import options
from serve_app.cli.commands.options import PATIENCE_S, SERVER
from serve_app.cli.lines import print_json, print_line
from serve_app.errors import ServeAppError

app = typer.Typer()
Pool = Annotated[str | None, typer.Option(metavar="NAME", help="only jobs that need this pool")]
Level = Literal["debug", "info", "warning", "error"]
Tenant = Annotated[str | None, typer.Option(metavar="NAME", help="only this tenant's jobs")]


@app.command()
def models(
    as_json: options.Json = False, server: options.Server = SERVER, patience: options.Patience = PATIENCE_S
) -> int:
    """List the model files."""
    return _show("model_lines", "/catalog", as_json, server, patience)


@app.command()
def nodes(
    as_json: options.Json = False, server: options.Server = SERVER, patience: options.Patience = PATIENCE_S
) -> int:
    """List the node classes."""
    return _show("node_lines", "/nodes", as_json, server, patience)


@app.command()
def status(
    as_json: options.Json = False, server: options.Server = SERVER, patience: options.Patience = PATIENCE_S
) -> int:
    """Show the cluster."""
    return _show("status_lines", "/status", as_json, server, patience)


@app.command()
def top(
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="between looks")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="look once")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="look once, and print what is there as JSON")] = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Watch the cluster: queue, pools, replicas, hosts."""
    from serve_app.cli.server import ServerClient
    from serve_app.cli.top import print_cluster, watch_cluster

    with ServerClient(server, patience) as client:
        if as_json:
            return print_cluster(client)
        return watch_cluster(client, every, once=once)


@app.command()
def logs(
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on with new lines, until Ctrl-C")] = False,
    last: Annotated[int, typer.Option("-n", "--last", min=0, metavar="N", help="lines to begin with")] = 200,
    level: Annotated[Level | None, typer.Option(help="only lines of it and graver ones")] = None,
    job: Annotated[str | None, typer.Option(metavar="JOB", help="only lines about this job")] = None,
    request: Annotated[
        str | None, typer.Option(metavar="ID", help="only lines about the request with this X-Request-ID")
    ] = None,
    replica: Annotated[str | None, typer.Option(metavar="REPLICA", help="only lines of this replica")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print each line as JSON")] = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Show the log of the server's processes."""
    from serve_app.cli.logs import print_logs
    from serve_app.cli.server import ServerClient

    wanted = {"last": last, "level": level, "job": job, "request": request, "replica": replica}
    query = {name: value for name, value in wanted.items() if value is not None}
    with ServerClient(server, patience) as client:
        return print_logs(client, query | ({"follow": "true"} if follow else {}), as_json=as_json)


@app.command()
def drain(
    replica: Annotated[str | None, typer.Argument(help="its id, as status lists it")] = None,
    host: Annotated[str | None, typer.Option(metavar="NAME", help="all replicas of a host")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="let it take tasks again")] = False,
    hand_over: Annotated[bool, typer.Option("--hand-over", help="other replicas go on with its tasks at once")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="return once it has no task")] = False,
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Give a replica or host no more tasks, also over restarts; it finishes or hands over what it has."""
    from serve_app.cli import drain
    from serve_app.cli.server import ServerClient

    if (replica is None) == (host is None):
        raise typer.BadParameter("give a replica or --host NAME")
    if undo and hand_over:
        raise typer.BadParameter("--hand-over is of a drain, and --undo undoes one")
    kind, name = ("replica", replica or "") if host is None else ("host", host)
    with ServerClient(server, patience) as client:
        drained = drain.drain(client, kind, name, undo=undo, hand_over=hand_over)
        if wait and not undo:
            drain.wait_until_idle(client, kind, name)
    if as_json:
        print_json({"drained": drained})
    else:
        print_line(f"drained: {', '.join(drained)}" if drained else "nothing is drained")
    return 0


@app.command()
def warm(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="as models lists them: checkpoints/sd15.safetensors")
    ],
    pool: Annotated[str | None, typer.Option(metavar="NAME", help="only replicas of this pool")] = None,
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Have replicas load models before a job asks for them."""
    from serve_app.cli.server import ServerClient

    body = {"models": models, **({} if pool is None else {"pool": pool})}
    with ServerClient(server, patience) as client:
        answer = client.post("/warm", body)
    replicas = ", ".join(answer["replicas"])
    if as_json:
        print_json(answer)
    else:
        print_line(f"loading in {replicas}" if replicas else "no replica is there that holds models")
    return 0


@app.command("add-model")
def add_model(
    file: Annotated[Path, typer.Argument(help="a safetensors file")],
    model: Annotated[
        str, typer.Argument(metavar="FOLDER[/NAME]", help="as models lists it (default: the file's own name)")
    ],
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Upload a model file, where the configuration lets admins."""
    from serve_app.cli.server import ServerClient

    if not file.is_file():
        raise ServeAppError(f"{file} is no file")
    folder, _, name = model.partition("/")
    with ServerClient(server, patience) as client:
        made = client.put(f"/models/{quote(folder)}/{quote(name or file.name)}", file)
    if as_json:
        print_json(made)
    else:
        print_line(f"{made['folder']}/{made['name']}: {made['size']} bytes")
    return 0


@app.command("remove-model")
def remove_model(
    model: Annotated[
        str, typer.Argument(metavar="FOLDER/NAME", help="as models lists it: checkpoints/sd15.safetensors")
    ],
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Delete a model file that no unfinished job names."""
    from serve_app.cli.server import ServerClient

    with ServerClient(server, patience) as client:
        answer = client.delete(f"/models/{quote(model)}")
    if as_json:
        print_json(answer)
    else:
        print_line(f"{model} is deleted")
    return 0


@app.command()
def pause(
    pool: Pool = None,
    tenant: Tenant = None,
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Start no more jobs; what runs goes on, also over restarts."""
    return _pause("/pause", pool, tenant, as_json, server, patience)


@app.command()
def resume(
    pool: Pool = None,
    tenant: Tenant = None,
    as_json: options.Json = False,
    server: options.Server = SERVER,
    patience: options.Patience = PATIENCE_S,
) -> int:
    """Take back a pause."""
    return _pause("/resume", pool, tenant, as_json, server, patience)


def _show(page: str, path: str, as_json: bool, server: str, patience: float) -> int:
    from serve_app.cli import pages
    from serve_app.cli.server import ServerClient

    with ServerClient(server, patience) as client:
        return pages.print_answer(getattr(pages, page), client.get(path), as_json=as_json)


def _pause(path: str, pool: str | None, tenant: str | None, as_json: bool, server: str, patience: float) -> int:
    from serve_app.cli.server import ServerClient

    if pool is not None and tenant is not None:
        raise typer.BadParameter("give --pool or --tenant, not both")
    which = {kind: name for kind, name in (("pool", pool), ("tenant", tenant)) if name is not None}
    with ServerClient(server, patience) as client:
        answer = client.post(path, which)
    paused = ", ".join(answer["paused"])
    if as_json:
        print_json(answer)
    else:
        print_line(f"paused: {paused}" if paused else "nothing is paused")
    return 0
