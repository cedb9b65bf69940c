"""The commands' names, arguments and help. Their implementations are in the modules of `cli`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from serve_app.cli.commands import adopt, cluster, database, jobs, packs, plan, serving, tenants
from serve_app.cli.lines import print_line


class _Commands(TyperGroup):
    """A group that exits with the command's return value as its status."""

    def invoke(self, ctx: Any) -> NoReturn:
        raise typer.Exit(super().invoke(ctx) or 0)


def _print_version(asked: bool) -> None:
    if asked:
        print_line(f"serve-app {version('serve-app')}")
        raise typer.Exit


def _main(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    """ComfyUI workflows on Ray Serve."""


app = typer.Typer(
    name="serve-app",
    callback=_main,
    cls=_Commands,
    help="ComfyUI workflows on Ray Serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (serving.app, adopt.app, jobs.app, cluster.app, database.app, packs.app, plan.app, tenants.app):
    app.add_typer(group)
app.add_typer(tenants.keys, name="keys")
