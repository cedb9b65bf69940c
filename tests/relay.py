"""A TCP relay in front of a server of the tests, whose network can be made to keep connections and lose every byte."""

from __future__ import annotations

import socket
import threading
from pathlib import Path


class Relay:
    """Listens on a port of loopback for a server at a Unix socket. lost: whether bytes on connections vanish.

    Connections that are made while `lost` is set are as silent as the others, and stay so after it.
    """

    def __init__(self, server: Path) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lost = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._server))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        silent = False
        try:
            while data := source.recv(65536):
                silent = silent or self.lost
                if not silent:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        finally:
            source.close()
