"""The command line: `serve-app up` starts a server, the other commands ask one over HTTP.

Each command imports what it needs when it runs, so that `submit` needs no torch and `up` no HTTP client.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from serve_app.cli.lines import say
from serve_app.errors import ServeAppError

LOCAL_CONFIG = Path("configs/local.yaml")
INTERRUPTED = 130
"""The exit status shells expect after Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 after an error, 2 for wrong arguments, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.command(arguments)
    except ServeAppError as error:
        say(f"serve-app: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve-app", description="ComfyUI workflows on Ray Serve.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="start the server on this machine, or on the Ray cluster of RAY_ADDRESS")
    up.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    up.add_argument(
        "--insecure",
        action="store_true",
        help="listen beyond this machine without tenants: whoever reaches the address may do everything",
    )
    up.add_argument("--port", type=int, default=8188, help="port to listen on (default: %(default)s)")
    for name, what in [
        ("models", "model files in ComfyUI's folders"),
        ("input", "uploaded files"),
        ("output", "saved images"),
        ("temp", "previews"),
        ("user", "settings and files of the web page's users"),
    ]:
        up.add_argument(f"--{name}-dir", type=Path, metavar="DIR", help=f"{what} (default: as configured)")
    up.add_argument("--cache", metavar="RULE", help="results kept for later jobs: classic, lru:N or none")
    up.add_argument("--custom-nodes-dir", type=Path, metavar="DIR", help="node packs to load (default: as configured)")
    up.add_argument(
        "--root-dialect",
        choices=("contract", "comfy"),
        help="whose form the root's routes have that both dialects know (default: as configured)",
    )
    up.add_argument(
        "--dashboard",
        action="store_true",
        help="start Ray's dashboard too, which is nine processes more",
    )
    up.add_argument(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help='a name that browsers reach the server by, "*" for any; may be repeated (default: as configured)',
    )
    up.add_argument(
        "--allowed-origin",
        action="append",
        metavar="ORIGIN",
        help='an origin, such as https://app.example, whose pages may use the server, "*" for any; may be repeated',
    )
    up.add_argument(
        "--preview-method",
        choices=("none", "latent2rgb", "taesd", "auto"),
        help="how clients are shown what samplers have come to (default: as configured)",
    )
    up.add_argument("--database-url", metavar="URL", help="where jobs are kept (default: as configured)")
    up.add_argument("--demo", action="store_true", help="put the tiny models that ship into the folder of models first")
    local = LOCAL_CONFIG if LOCAL_CONFIG.is_file() else None
    up.add_argument("--config", type=Path, default=local, help=f"a Serve config file (default: {LOCAL_CONFIG})")
    up.set_defaults(command=_up)

    submit = _asking(commands, "submit", "run a workflow and save its images")
    submit.add_argument("workflow", type=Path, help="a workflow, as the web page saves it or in API format")
    submit.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        dest="assignments",
        help="change an input, e.g. --set 3.seed=7; VALUE is JSON, else a string",
    )
    submit.add_argument(
        "--strict", action="store_true", help="share no computation with other jobs: equal jobs are equal to the bit"
    )
    submit.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="where to save (default: here)")
    submit.add_argument("--detach", action="store_true", help="print the job's id once it is queued; watch it later")
    submit.set_defaults(command=_submit)

    watch = _asking(commands, "watch", "follow a job to its end and save its images")
    watch.add_argument("job", help="the id that submit printed")
    watch.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="where to save (default: here)")
    watch.set_defaults(command=_watch)

    compare = _asking(commands, "compare", "run a workflow on two kinds of pool and compare what they save")
    compare.add_argument("workflow", type=Path, help="a workflow, as submit takes it")
    compare.add_argument(
        "--pools",
        nargs=2,
        default=["shared", "comfyui"],
        metavar="POOL",
        help="pools to compare; shared is all that share workflows (default: shared comfyui)",
    )
    compare.add_argument(
        "--tolerance", type=float, default=1.0, metavar="N", help="largest difference, of 255 (default: %(default)g)"
    )
    compare.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="for the pictures (default: here)")
    compare.set_defaults(command=_compare)

    convert = _asking(commands, "convert", "turn a workflow that the web page saved into API format")
    convert.add_argument("workflow", type=Path, help="the saved workflow")
    convert.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write it (default: print it)")
    convert.add_argument("--offline", action="store_true", help="know the built-in node classes, and ask no server")
    convert.set_defaults(command=_convert)

    cancel = _asking(commands, "cancel", "cancel a job that has not ended")
    cancel.add_argument("job", help="the id that submit printed")
    cancel.set_defaults(command=_cancel)

    warm = _asking(commands, "warm", "have replicas load models before a job asks for them")
    warm.add_argument("models", nargs="+", metavar="MODEL", help="as models lists them: checkpoints/sd15.safetensors")
    warm.add_argument("--pool", metavar="NAME", help="only replicas of this pool")
    warm.set_defaults(command=_warm)

    add_model = _asking(commands, "add-model", "upload a model file, where the configuration lets admins")
    add_model.add_argument("file", type=Path, help="a safetensors file")
    add_model.add_argument("model", metavar="FOLDER[/NAME]", help="as models lists it (default: the file's own name)")
    add_model.set_defaults(command=_add_model)

    remove_model = _asking(commands, "remove-model", "delete a model file that no unfinished job names")
    remove_model.add_argument("model", metavar="FOLDER/NAME", help="as models lists it: checkpoints/sd15.safetensors")
    remove_model.set_defaults(command=_remove_model)

    for name, what in [
        ("pause", "start no more jobs; what runs goes on, also over restarts"),
        ("resume", "take back a pause"),
    ]:
        pausing = _asking(commands, name, what)
        which = pausing.add_mutually_exclusive_group()
        which.add_argument("--pool", metavar="NAME", help="only jobs that need this pool")
        which.add_argument("--tenant", metavar="NAME", help="only this tenant's jobs")
        pausing.set_defaults(command=_pause, name=name)

    for name, path, what in [
        ("models", "catalog", "list the model files"),
        ("nodes", "nodes", "list the node classes"),
        ("status", "status", "show the cluster"),
    ]:
        _asking(commands, name, what).set_defaults(command=_show, page=name, path=path)

    story = _asking(commands, "story", "show what happened lately to a job that has not ended")
    story.add_argument("job", help="the id that submit printed")
    story.set_defaults(command=_show, page="story", path="status")

    top = _asking(commands, "top", "watch the cluster: queue, pools, replicas, hosts")
    top.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between looks (default: %(default)s)")
    top.add_argument("--once", action="store_true", help="look once")
    top.set_defaults(command=_top)

    check = commands.add_parser("check", help="compare the database with the stored files, while no server runs")
    check.add_argument("--mend", action="store_true", help="remove files that their jobs saved and nobody recorded")
    check.add_argument("--output-dir", type=Path, metavar="DIR", help="saved images (default: as configured)")
    check.add_argument("--database-url", metavar="URL", help="where jobs are kept (default: as configured)")
    check.add_argument("--config", type=Path, default=local, help=f"a Serve config file (default: {LOCAL_CONFIG})")
    check.set_defaults(command=_check)

    for name, what in [
        ("backup", "copy the database into a file, also while a server works on it"),
        ("restore", "put such a copy in the place of a database, while no server works on it"),
    ]:
        copying = commands.add_parser(name, help=what)
        copying.add_argument("file", type=Path, help="the copy, such as jobs.backup.gz")
        copying.add_argument("--database-url", metavar="URL", help="where jobs are kept (default: as configured)")
        copying.add_argument(
            "--config", type=Path, default=local, help=f"a Serve config file (default: {LOCAL_CONFIG})"
        )
        if name == "backup":
            copying.add_argument(
                "--files", action="store_true", help="also list the stored files, which restore looks for"
            )
        else:
            copying.add_argument("--replace", action="store_true", help="let the jobs go that the database has")
            copying.add_argument(
                "--keep-keys", action="store_true", help="let API keys hold that the database does not know"
            )
        copying.set_defaults(command=_copy, name=name)

    packs = commands.add_parser("packs", help="load a folder of node packs and say which of their classes can run here")
    packs.add_argument("directory", type=Path, help="the folder that --custom-nodes-dir of up would name")
    packs.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    packs.add_argument(
        "--lock", action="store_true", help="write what all of them need into DIRECTORY/requirements.lock"
    )
    packs.set_defaults(command=_packs)

    _keys_parser(commands, local)
    demo = commands.add_parser("demo", help="start a server here, draw a picture with the models that ship, stop it")
    demo.set_defaults(command=_demo)
    return parser


def _keys_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], local: Path | None) -> None:
    """Add the commands for tenants: keys, the audit log, and who there is."""
    keys = commands.add_parser("keys", help="make, list, rotate and revoke the keys of tenants")
    actions = keys.add_subparsers(required=True, metavar="ACTION", dest="action")
    create = actions.add_parser("create", help="make a key and print it, this once")
    create.add_argument("tenant", help='whose it is; "" for the operator')
    create.add_argument("--name", default="", help="what people call it")
    create.add_argument(
        "--scope",
        action="append",
        choices=("submit", "read", "admin", "metrics"),
        help="what it allows; may be repeated (default: submit, read)",
    )
    create.add_argument("--days", type=float, metavar="N", help="how long it holds (default: until it is revoked)")
    rotate = actions.add_parser("rotate", help="make a key's successor and print it, this once")
    rotate.add_argument("key", help="the id, or what list shows of the key")
    rotate.add_argument(
        "--grace",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="how long the old one holds (default: %(default)g)",
    )
    revoke = actions.add_parser("revoke", help="end a key")
    revoke.add_argument("key", help="the id, or what list shows of the key")
    listed = actions.add_parser("list", help="list the keys")
    tenants = commands.add_parser("tenants", help="list the tenants: keys, jobs, GPU-seconds, quotas")
    audit = commands.add_parser("audit", help="show the audit log, the newest first")
    audit.add_argument("--limit", type=int, default=50, metavar="N", help="entries (default: %(default)s)")
    audit.add_argument("--tenant", metavar="NAME", help="only of one")
    for command, action in [(create, "create"), (rotate, "rotate"), (revoke, "revoke"), (listed, "list")]:
        command.set_defaults(command=_keys, action=action)
    tenants.set_defaults(command=_keys, action="tenants")
    audit.set_defaults(command=_keys, action="audit")
    for command in (create, rotate, revoke, listed, tenants, audit):
        command.add_argument("--database-url", metavar="URL", help="where keys are kept (default: as configured)")
        command.add_argument(
            "--config", type=Path, default=local, help=f"a Serve config file (default: {LOCAL_CONFIG})"
        )
        command.add_argument(
            "--server", metavar="URL", help="ask this server instead, with the admin's key in SERVE_APP_KEY"
        )


def _keys(arguments: argparse.Namespace) -> int:
    from serve_app.cli import tenants

    return tenants.run(arguments)


def _asking(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str
) -> argparse.ArgumentParser:
    """Add a command that asks a server."""
    command = commands.add_parser(name, help=what)
    default = os.environ.get("SERVE_APP_URL", "http://127.0.0.1:8188")
    command.add_argument("--server", default=default, metavar="URL", help="default: SERVE_APP_URL, else %(default)s")
    command.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to try a server that does not answer (default: %(default)s)",
    )
    return command


def _up(arguments: argparse.Namespace) -> int:
    from serve_app.deployments.process.up import up

    return up(arguments)


def _submit(arguments: argparse.Namespace) -> int:
    from serve_app.cli.convert import served_classes
    from serve_app.cli.server import Server
    from serve_app.cli.submit import submit
    from serve_app.cli.workflow import changed, read_body

    with Server(arguments.server, arguments.patience) as server:
        body = changed(read_body(arguments.workflow, lambda: served_classes(server)), arguments.assignments)
        if arguments.strict:
            body["extra_data"] = {**(body.get("extra_data") or {}), "strict": True}
        return submit(server, body, arguments.out, detach=arguments.detach)


def _watch(arguments: argparse.Namespace) -> int:
    from serve_app.cli.server import Server
    from serve_app.cli.submit import watch

    with Server(arguments.server, arguments.patience) as server:
        return watch(server, arguments.job, arguments.out)


def _packs(arguments: argparse.Namespace) -> int:
    from serve_app.cli.packs import lock, packs

    if not arguments.directory.is_dir():
        raise ServeAppError(f"{arguments.directory} is no folder; give the one that holds the node packs")
    directory = arguments.directory.absolute()
    if arguments.lock:
        return lock(directory)
    status = packs(directory, markdown=arguments.markdown)
    # Threads that packs have started would keep the process for ever.
    sys.stdout.flush()
    os._exit(status)


def _compare(arguments: argparse.Namespace) -> int:
    from serve_app.cli.compare import compare
    from serve_app.cli.convert import served_classes
    from serve_app.cli.server import Server
    from serve_app.cli.workflow import read_body

    with Server(arguments.server, arguments.patience) as server:
        body = read_body(arguments.workflow, lambda: served_classes(server))
        return compare(server, body, arguments.pools, arguments.tolerance, arguments.out)


def _convert(arguments: argparse.Namespace) -> int:
    from serve_app.cli.convert import convert, own_classes, served_classes
    from serve_app.cli.server import Server
    from serve_app.cli.workflow import read_body

    with Server(arguments.server, arguments.patience) as server:
        classes = own_classes if arguments.offline else lambda: served_classes(server)
        return convert(read_body(arguments.workflow, classes), arguments.output)


def _cancel(arguments: argparse.Namespace) -> int:
    from serve_app.cli.server import Server

    with Server(arguments.server, arguments.patience) as server:
        cancelled = server.post(f"/jobs/{arguments.job}/cancel", {})["cancelled"]
    say("cancelled" if cancelled else f"{arguments.job} has ended already, or no job has this id")
    return 0 if cancelled else 1


def _warm(arguments: argparse.Namespace) -> int:
    from serve_app.cli.server import Server

    asked = {"models": arguments.models, **({} if arguments.pool is None else {"pool": arguments.pool})}
    with Server(arguments.server, arguments.patience) as server:
        replicas = server.post("/warm", asked)["replicas"]
    say(f"loading in {', '.join(replicas)}" if replicas else "no replica is there that holds models")
    return 0


def _add_model(arguments: argparse.Namespace) -> int:
    from serve_app.cli.server import Server

    if not arguments.file.is_file():
        raise ServeAppError(f"{arguments.file} is no file")
    folder, _, name = arguments.model.partition("/")
    with Server(arguments.server, arguments.patience) as server:
        made = server.put(f"/models/{quote(folder)}/{quote(name or arguments.file.name)}", arguments.file)
    say(f"{made['folder']}/{made['name']}: {made['size']} bytes")
    return 0


def _remove_model(arguments: argparse.Namespace) -> int:
    from serve_app.cli.server import Server

    with Server(arguments.server, arguments.patience) as server:
        server.delete(f"/models/{quote(arguments.model)}")
    say(f"{arguments.model} is deleted")
    return 0


def _pause(arguments: argparse.Namespace) -> int:
    from serve_app.cli.server import Server

    which = {kind: name for kind in ("pool", "tenant") if (name := getattr(arguments, kind)) is not None}
    with Server(arguments.server, arguments.patience) as server:
        paused = server.post(f"/{arguments.name}", which)["paused"]
    say(f"paused: {', '.join(paused)}" if paused else "nothing is paused")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from serve_app.cli import pages
    from serve_app.cli.server import Server

    with Server(arguments.server, arguments.patience) as server:
        job = f"/{arguments.job}" if "job" in arguments else ""
        answer = server.get(f"/{arguments.path}{job}")
    for line in getattr(pages, arguments.page)(answer):
        say(line)
    return 0


def _top(arguments: argparse.Namespace) -> int:
    from serve_app.cli.server import Server
    from serve_app.cli.top import top

    with Server(arguments.server, arguments.patience) as server:
        return top(server, max(0.1, arguments.every), once=arguments.once)


def _check(arguments: argparse.Namespace) -> int:
    from serve_app import config
    from serve_app.cli.check import check

    settings = config.load(arguments.config) if arguments.config else config.AppConfig()
    given = {name: value for name in ("output_dir", "database_url") if (value := getattr(arguments, name)) is not None}
    return check(config.parse({**settings.model_dump(), **given}, "command line").resolved(), mend=arguments.mend)


def _copy(arguments: argparse.Namespace) -> int:
    from serve_app import config
    from serve_app.cli.backup import backup, restore

    settings = config.load(arguments.config) if arguments.config else config.AppConfig()
    given = {} if arguments.database_url is None else {"database_url": arguments.database_url}
    resolved = config.parse({**settings.model_dump(), **given}, "command line").resolved()
    if arguments.name == "backup":
        return backup(resolved, arguments.file, files=arguments.files)
    return restore(resolved, arguments.file, replace=arguments.replace, keep_keys=arguments.keep_keys)


def _demo(_arguments: argparse.Namespace) -> int:
    from serve_app.cli.demo import demo

    return demo()
