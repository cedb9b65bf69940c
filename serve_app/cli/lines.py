"""Printing to the terminal; all text of servers and files goes through here, so that it is escaped."""

from __future__ import annotations

import json
import sys
from typing import Any

from serve_app.printable import printable


def print_line(line: str, *, error: bool = False) -> None:
    """Print a line at once to standard output, or to standard error."""
    print(printable(line), file=sys.stderr if error else sys.stdout, flush=True)


def print_json(value: Any) -> None:
    """Print a JSON value, for programs to read; control characters are escaped as JSON escapes them."""
    print(json.dumps(value, indent=2), flush=True)
