"""Where the contract is tested: a real server of its own, `serve-app up` on Ray Serve."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.server import Server, running
from tests.unit.api.conftest import example

__all__ = ["example"]


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for every test of the contract."""
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="package")
def base_url(server: Server) -> str:
    """The address of the server under test."""
    return server.url
