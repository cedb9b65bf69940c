"""Commands that work on the database and the stored files themselves: check, backup, restore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.commands import options
from serve_app.errors import BackupError

app = typer.Typer()
Copy = Annotated[Path, typer.Argument(help="the copy, such as jobs.backup.gz")]


@app.command()
def check(
    mend: Annotated[
        bool, typer.Option("--mend", help="remove files that their jobs saved and nobody recorded")
    ] = False,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="saved images (default: as configured)")
    ] = None,
    as_json: options.Json = False,
    database_url: options.DatabaseUrl = None,
    config: options.Config = None,
) -> int:
    """Compare the database with the stored files, while no server runs."""
    from serve_app.cli.check import check_files

    found = options.settings(config, output_dir=output_dir, database_url=database_url)
    return check_files(found, mend=mend, as_json=as_json)


@app.command()
def backup(
    file: Copy,
    files: Annotated[bool, typer.Option("--files", help="also list the stored files, which restore looks for")] = False,
    as_json: options.Json = False,
    database_url: options.DatabaseUrl = None,
    config: options.Config = None,
) -> int:
    """Copy the database into a file, also while a server works on it."""
    from serve_app.cli.backup import backup_database

    return backup_database(options.settings(config, database_url=database_url), file, files=files, as_json=as_json)


@app.command()
def restore(
    file: Copy,
    replace: Annotated[bool, typer.Option("--replace", help="let the jobs go that the database has")] = False,
    keep_keys: Annotated[
        bool, typer.Option("--keep-keys", help="let API keys hold that the database does not know")
    ] = False,
    as_json: options.Json = False,
    database_url: options.DatabaseUrl = None,
    config: options.Config = None,
) -> int:
    """Replace a database by a backup, while no server works on it."""
    from serve_app.cli.backup import restore_database

    if not file.is_file():
        raise BackupError(f"there is no backup {file}")
    changed = options.settings(config, new=True, database_url=database_url)
    return restore_database(changed, file, replace=replace, keep_keys=keep_keys, as_json=as_json)
