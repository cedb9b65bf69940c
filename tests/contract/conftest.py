"""Where the contract is tested: a real server, `serve-app up` on Ray Serve."""

from __future__ import annotations

import pytest

from tests.cluster.server import Server
from tests.unit.api.conftest import example

__all__ = ["example"]


@pytest.fixture(scope="package")
def base_url(server: Server) -> str:
    """The address of the server under test."""
    return server.url
