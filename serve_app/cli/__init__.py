"""The command line: `serve-app up` starts a server, most other commands are clients of one over HTTP.

Each command imports what it needs when it runs, so that `submit` needs no torch and `up` no HTTP client.
"""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.cli.commands import app
from serve_app.cli.lines import print_line
from serve_app.errors import ServeAppError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 after an error, 2 for wrong arguments, 130 after Ctrl-C."""
    try:
        app(None if argv is None else list(argv), prog_name="serve-app")
    except ServeAppError as error:
        print_line(f"serve-app: {error}", error=True)
        return 1
    except OSError as error:
        named = "" if error.filename is None else f"{error.filename}: "
        print_line(f"serve-app: {named}{error.strerror or error}", error=True)
        return 1
    except SystemExit as ended:
        if isinstance(ended.code, int):
            return ended.code
        raise
    return 0
