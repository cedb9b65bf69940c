"""The process that deploys, before it has a Ray."""

from __future__ import annotations

import subprocess
import sys

from serve_app.deployments.build import ENVIRONMENT
from serve_app.deployments.up import OWN_RAY


def test_it_imports_no_torch():
    code = "import sys, serve_app.deployments.serving; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"


def test_pools_have_what_they_ask_of_the_environment_from_the_start():
    assert ENVIRONMENT.items() <= OWN_RAY.items()
