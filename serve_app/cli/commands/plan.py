"""`serve-app plan`: say what a job would take of a card that need not be there."""

from __future__ import annotations

from typing import Annotated

import typer

from serve_app.cli.commands import options

app = typer.Typer()


@app.command()
def plan(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="files of one job: paths, or names as loaders list them"),
    ],
    gpu: Annotated[str, typer.Option(metavar="SIZE", help="the card's memory, as 24G or 24576M")],
    ram: Annotated[str, typer.Option(metavar="SIZE", help="the host's memory, likewise")],
    width: Annotated[int | None, typer.Option(min=1, help="pixels (default: usual for the family)")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="pixels (default: usual for the family)")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="images of a video (default: usual for the family)")] = None,
    devices: Annotated[
        int, typer.Option(min=1, max=8, help="plan replicas of up to so many of these cards too (devices_per_replica)")
    ] = 1,
    link: Annotated[
        str, typer.Option(metavar="LINK", help="how these cards are connected: nvlink, pcie5, pcie4 or 100g")
    ] = "nvlink",
    shard_weights: Annotated[
        bool, typer.Option("--shard-weights", help="as a pool with shard_weights: auto shards what would stream")
    ] = False,
    as_json: options.Json = False,
    config: options.Config = None,
) -> int:
    """Say whether models fit a card, which of them stream, and about how long a step takes. Reads headers alone."""
    from serve_app.cli.plan import Asked, print_plan

    asked = Asked(tuple(models), gpu, ram, width, height, frames, devices, link, shard_weights)
    return print_plan(asked, options.configured(config), as_json=as_json)
