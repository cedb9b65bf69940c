"""Writing lines to the terminal: the only way there for text of a server's or of a file's."""

from __future__ import annotations

import sys

from serve_app.printable import printable


def say(line: str, *, error: bool = False) -> None:
    """Print a line at once to standard output, or to standard error."""
    print(printable(line), file=sys.stderr if error else sys.stdout, flush=True)
