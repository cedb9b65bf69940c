"""`serve-app packs`: check which classes of a folder of node packs can run here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.commands import options
from serve_app.errors import ServeAppError

app = typer.Typer()


@app.command()
def packs(
    directory: Annotated[Path, typer.Argument(help="the folder that --custom-nodes-dir of up would name")],
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table in Markdown")] = False,
    as_json: options.Json = False,
    lock: Annotated[
        bool, typer.Option("--lock", help="write what all of them need into DIRECTORY/requirements.lock")
    ] = False,
) -> int:
    """Load a folder of node packs and say which of their classes can run here."""
    from serve_app.cli import packs

    if not directory.is_dir():
        raise ServeAppError(f"{directory} is no folder; give the one that holds the node packs")
    if lock:
        return packs.make_lock_file(directory.absolute())
    status = packs.report_packs(directory.absolute(), markdown=markdown, as_json=as_json)
    # Threads that packs have started would keep the process alive for ever.
    sys.stdout.flush()
    os._exit(status)
