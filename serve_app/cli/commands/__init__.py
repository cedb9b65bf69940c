"""The commands' names, arguments and help. Their implementations are in the modules of `cli`."""

from __future__ import annotations

from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from serve_app.cli.commands import cluster, database, jobs, packs, plan, serving, tenants


class _Commands(TyperGroup):
    """A group that exits with the command's return value as its status."""

    def invoke(self, ctx: Any) -> NoReturn:
        raise typer.Exit(super().invoke(ctx) or 0)


app = typer.Typer(
    name="serve-app",
    cls=_Commands,
    help="ComfyUI workflows on Ray Serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (serving.app, jobs.app, cluster.app, database.app, packs.app, plan.app, tenants.app):
    app.add_typer(group)
app.add_typer(tenants.keys, name="keys")
