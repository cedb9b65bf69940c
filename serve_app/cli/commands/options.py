"""Options shared by several commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from serve_app.config import AppConfig

LOCAL_CONFIG = Path("configs/local.yaml")

Server = Annotated[str, typer.Option(envvar="SERVE_APP_URL", metavar="URL", help="the server to ask")]
Patience = Annotated[
    float,
    typer.Option(min=0, metavar="SECONDS", help="how long to try a server that does not answer", show_default=True),
]
Json = Annotated[bool, typer.Option("--json", help="print the answer as JSON")]
Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help=f"a Serve config file (default: {LOCAL_CONFIG}, if it is there)")
]
DatabaseUrl = Annotated[str | None, typer.Option(metavar="URL", help="where jobs are kept (default: as configured)")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="where to save")]

SERVER = "http://127.0.0.1:8188"
PATIENCE_S = 60.0


def config_file(given: Path | None) -> Path | None:
    """Return the configuration file to read: the given one, else the local one if it exists."""
    return given or (LOCAL_CONFIG if LOCAL_CONFIG.is_file() else None)


def umask(text: str) -> int:
    """Return the mode bits that octal digits name. Errors: typer.BadParameter."""
    if not re.fullmatch("[0-7]{1,4}", text):
        raise typer.BadParameter(f"{text!r} is not a mode in octal digits, such as 077 or 022", param_hint="--umask")
    return int(text, 8)


def configured(given: Path | None, *, new: bool = False, **changed: Any) -> AppConfig:
    """Return the configuration with overrides from the command line; None is no override.

    new: whether the command may make folders. Errors: ConfigError.
    """
    from serve_app import config

    file = config_file(given)
    read = config.load(file) if file else config.AppConfig()
    named = {name: value for name, value in changed.items() if value is not None}
    return config.parse({**read.model_dump(), **named}, "command line").resolved(make=new)


def settings(given: Path | None, *, new: bool = False, **changed: Any) -> AppConfig:
    """Return the configuration, as `configured`, of a server whose database is there.

    new: whether the command may make a database and folders. Errors: ConfigError, also if none is there to be used.
    """
    from serve_app.store.database.database import check_exists

    found = configured(given, new=new, **changed)
    if not new:
        check_exists(found.database_url)
    return found
