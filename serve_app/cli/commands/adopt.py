"""`serve-app adopt`: a configuration for what a ComfyUI's folder has."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.commands import options

app = typer.Typer()


@app.command()
def adopt(
    folder: Annotated[Path, typer.Argument(help="the folder of the ComfyUI, with main.py")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="the configuration to write")] = Path(
        "configs/comfyui.yaml"
    ),
    python: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the ComfyUI's Python (default: of a venv in its folder)")
    ] = None,
    convert: Annotated[
        bool, typer.Option("--convert", help="make safetensors files of .ckpt and .pt files that hold tensors alone")
    ] = False,
    as_json: options.Json = False,
) -> int:
    """Say what of a ComfyUI runs here, in a pool that is that ComfyUI, or nowhere, and write the configuration."""
    import torch

    from serve_app.cli.adopting.adopt import adopt

    gpu = torch.cuda.is_available()
    status = adopt(folder.expanduser().absolute(), output, python, converting=convert, as_json=as_json, gpu=gpu)
    # Threads that packs have started would keep the process alive for ever.
    sys.stdout.flush()
    os._exit(status)
