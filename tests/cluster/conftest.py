from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.server import Server, running


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that break a part of it and see it mend itself."""
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server
