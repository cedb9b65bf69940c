"""Where other people's clients are tested, unchanged, against a real server of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.server import Server, running


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all clients, with the contract's form at its root."""
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server
