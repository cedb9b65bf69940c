"""Where `make clients` puts clients that are not among the project's own test packages."""

from pathlib import Path

import pytest

CLIENTS = Path(__file__).parents[2] / ".clients"

needs_clients = pytest.mark.skipif(not (CLIENTS / "installed").exists(), reason="`make clients` was not run")
