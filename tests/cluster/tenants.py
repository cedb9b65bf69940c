"""A real server with tenants, as each of them sees it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from serve_app.cli import main
from tests.cluster.server import Application, Server, configure

CLIENT = "the-same-client"
"""As what clients of every tenant call themselves."""


class TenantServer:
    """A server over a directory. keys: each tenant's, as it is now. admin_key: the operator's."""

    def __init__(self, root: Path, *tenants: str, arguments: Mapping[str, Any]) -> None:
        configure(root, {"tenants": {}, **arguments})
        self.root = root
        self.keys = {tenant: self.told("keys", "create", tenant) for tenant in tenants}
        self.admin_key = self.told("keys", "create", "", "--scope", "admin")
        self.server = Server(root)
        """The server as the operator sees it."""
        self.server.http.headers["Authorization"] = f"Bearer {self.admin_key}"

    def told(self, *arguments: str) -> str:
        """Return what a command prints that works on the server's database."""
        folder = self.root / "state"
        folder.mkdir(exist_ok=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main([*arguments, "--database-url", f"sqlite:///{folder}/jobs.sqlite"]) == 0
        return printed.getvalue().strip()

    @contextlib.contextmanager
    def client(self, tenant: str) -> Iterator[Application]:
        """Yield the server as one tenant sees it."""
        application = Application(self.server.port)
        application.http.headers["Authorization"] = f"Bearer {self.keys[tenant]}"
        with application.http:
            yield application

    def socket(self, tenant: str) -> ClientConnection:
        """Return a websocket of one tenant's client."""
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"}
        return connect(f"ws://127.0.0.1:{self.server.port}/ws?clientId={CLIENT}", additional_headers=headers)


@contextlib.contextmanager
def running(root: Path, *tenants: str, **arguments: Any) -> Iterator[TenantServer]:
    """Yield a server with tenants that is ready; end it afterwards. arguments: of the application, beside `tenants`."""
    made = TenantServer(root, *tenants, arguments=arguments)
    try:
        made.server.wait_until_ready()
        yield made
    finally:
        made.server.close()
