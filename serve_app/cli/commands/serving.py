"""`serve-app up`, `doctor`, `demo` and `examples`: starting a server on this machine, and what to send it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from serve_app.cli.commands import options

app = typer.Typer()


def _folder(what: str) -> typer.models.OptionInfo:
    return typer.Option(metavar="DIR", help=f"{what} (default: as configured)")  # type: ignore[no-any-return]


@app.command()
def up(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="port to listen on, 0 for a free one (default: as configured, else 8188)",
            envvar="SERVE_APP_PORT",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="listen beyond this machine without tenants: whoever reaches the address may do everything",
        ),
    ] = False,
    models_dir: Annotated[Path | None, _folder("model files in ComfyUI's folders")] = None,
    extra_model_paths_config: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="further folders of models, as ComfyUI's extra_model_paths.yaml names them"),
    ] = None,
    input_dir: Annotated[Path | None, _folder("uploaded files")] = None,
    output_dir: Annotated[Path | None, _folder("saved images")] = None,
    temp_dir: Annotated[Path | None, _folder("previews")] = None,
    user_dir: Annotated[Path | None, _folder("settings and files of the web page's users")] = None,
    custom_nodes_dir: Annotated[Path | None, _folder("node packs to load")] = None,
    cache: Annotated[
        str | None, typer.Option(metavar="RULE", help="results kept for later jobs: classic, lru:N or none")
    ] = None,
    root_dialect: Annotated[
        Literal["contract", "comfy"] | None,
        typer.Option(help="whose form the root's routes have that both dialects know (default: as configured)"),
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="start Ray's dashboard too, which is nine processes more")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help='a name that browsers reach the server by, "*" for any; may be repeated (default: as configured)',
        ),
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help='an origin, such as https://app.example, whose pages may use the server, "*" for any; may be repeated',
        ),
    ] = None,
    preview_method: Annotated[
        Literal["none", "latent2rgb", "taesd", "auto"] | None,
        typer.Option(help="how clients see a picture while it is sampled (default: as configured)"),
    ] = None,
    umask: Annotated[
        str, typer.Option(metavar="MODE", help="permissions that files it writes do not have, such as 022")
    ] = "077",
    database_url: options.DatabaseUrl = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="put the tiny models that ship into the folder of models first")
    ] = False,
    config: options.Config = None,
) -> int:
    """Start the server on this machine, or on the Ray cluster of RAY_ADDRESS."""
    from serve_app.deployments.process.up import UpOptions, up

    return up(
        UpOptions(
            host=host,
            port=port,
            insecure=insecure,
            dashboard=dashboard,
            demo=demo,
            umask=options.umask(umask),
            config=options.config_file(config),
            root_dialect=root_dialect,
            allowed_hosts=tuple(allowed_host or ()),
            allowed_origins=tuple(allowed_origin or ()),
            changed={
                "models_dir": models_dir,
                "extra_model_paths": tuple(extra_model_paths_config) if extra_model_paths_config else None,
                "input_dir": input_dir,
                "output_dir": output_dir,
                "temp_dir": temp_dir,
                "user_dir": user_dir,
                "custom_nodes_dir": custom_nodes_dir,
                "database_url": database_url,
                "cache": cache,
                "preview_method": preview_method,
            },
        )
    )


@app.command()
def doctor(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="port to listen on, 0 for a free one (default: as configured, else 8188)"),
    ] = None,
    models_dir: Annotated[Path | None, _folder("model files in ComfyUI's folders")] = None,
    output_dir: Annotated[Path | None, _folder("saved images")] = None,
    custom_nodes_dir: Annotated[Path | None, _folder("node packs to load")] = None,
    database_url: options.DatabaseUrl = None,
    as_json: options.Json = False,
    config: options.Config = None,
) -> int:
    """Check all that up needs, change nothing, and say what mends what is wrong."""
    from serve_app.cli.doctor import print_findings
    from serve_app.deployments.process.start_checks import examine
    from serve_app.deployments.process.up import UpOptions, planned

    changed = {"models_dir": models_dir, "output_dir": output_dir, "custom_nodes_dir": custom_nodes_dir}
    asked = UpOptions(
        host=host,
        port=port,
        config=options.config_file(config),
        changed={**changed, "database_url": database_url},
    )
    return print_findings(examine(planned(asked, looking=True)), as_json=as_json)


@app.command("examples")
def show_examples(
    name: Annotated[str | None, typer.Argument(help="print this one (default: list all)")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="write all into this folder")] = None,
    as_json: options.Json = False,
) -> int:
    """List the sample workflows that come with the package; they run on its tiny models."""
    from serve_app.cli import examples

    if out is not None:
        return examples.write_examples(out)
    return examples.list_examples(as_json=as_json) if name is None else examples.print_example(name)


@app.command("demo")
def draw() -> int:
    """Start a server here, draw a picture with the models that ship, stop it."""
    from serve_app.cli.demo import run_demo

    return run_demo()
