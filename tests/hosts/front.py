"""The load balancer before a cluster's hosts: a HAProxy that sends clients to those that say they are ready."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from serve_app.deployments.proxy.haproxy import error_pages, find
from tests.cluster.server import ENDED_S, free_port

CONFIG = """
defaults
    mode http
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    retries 3
    option redispatch
    # A request on a connection that its host is closing would be lost, and nobody could say whether it was taken.
    option http-server-close
{pages}
frontend clients
    bind 127.0.0.1:{port}
    use_backend sockets if {{ hdr(upgrade) -i websocket }}
    default_backend hosts
backend hosts
    option httpchk GET /readyz
    # A host that is gone refuses, or does not answer at all, within the time to connect. One that is slow is there.
    timeout check 20s
    default-server check inter 1s fall 2 rise 1
{servers}
backend sockets
    # Those of a host that is gone are closed, so that clients open others. A request is let end: it may be answered.
    default-server on-marked-down shutdown-sessions
{sockets}
"""


class Front:
    """servers: host and port of each by name; those that are not there yet are waited for."""

    def __init__(self, folder: Path, servers: Mapping[str, str]) -> None:
        folder.mkdir()
        self._port = free_port()
        pages = "\n".join(f"    {line}" for line in error_pages(folder))
        listed = "\n".join(f"    server {name} {address}" for name, address in servers.items())
        sockets = "\n".join(f"    server {name} {address} track hosts/{name}" for name, address in servers.items())
        path = folder / "haproxy.cfg"
        path.write_text(CONFIG.format(port=self._port, pages=pages, servers=listed, sockets=sockets))
        program = find()
        assert program is not None
        with (folder / "log").open("wb") as log:
            command = [program, "-db", "-f", str(path)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def url(self) -> str:
        """Where clients come in."""
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait(ENDED_S)
