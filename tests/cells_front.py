"""The front of several cells, configs/cells.cfg, run by HAProxy on this machine."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from serve_app.deployments.proxy.haproxy import find
from tests.cluster.server import free_port

CONFIG = Path(__file__).parents[1] / "configs" / "cells.cfg"
SERVERS = {"north": "10.20.1.1:8000", "south": "10.20.2.1:8000"}
"""What is to be replaced by the addresses of real ones."""


class CellsFront:
    """cells: the address of each. routes: the cell of each host name and key id."""

    def __init__(self, folder: Path, cells: Mapping[str, str], routes: Mapping[str, str]) -> None:
        self._map, self._admin = folder / "cells.map", folder / "admin.sock"
        self._map.write_text("".join(f"{name} {cell}\n" for name, cell in routes.items()))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = (
            CONFIG.read_text()
            .replace("/etc/haproxy/cells.map", str(self._map))
            .replace(":8000", f"127.0.0.1:{port}", 1)
        )
        config = config.replace("/run/haproxy/admin.sock", str(self._admin))
        for cell, address in cells.items():
            config = config.replace(SERVERS[cell], address)
        path = folder / "cells.cfg"
        path.write_text(config)
        program = find()
        assert program is not None
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, "-db", "-f", str(path)], stdout=log, stderr=log, start_new_session=True
            )

    def route(self, name: str, cell: str) -> None:
        """Send a name to another cell from now on, without a restart; `moving` to none."""
        deadline = time.monotonic() + 10
        while not self._admin.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self._admin))
            admin.sendall(f"set map {self._map} {name} {cell}\n".encode())
            said = admin.recv(4096).decode().strip()
        assert not said, said

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
