"""Environment variables of processes that compute with torch, which it and cuBLAS read at their start.

Imports neither, so that the supervisor, which has neither torch nor Ray, can hand it to every process of its own Ray.
"""

from __future__ import annotations

import os
from typing import Any

ENVIRONMENT = {
    # torch asks for large memory in large pages, which halves the time to load on a CPU.
    "THP_MEM_ALLOC_ENABLE": "1",
    # cuBLAS sums in the same order each time.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # torch's memory of a card grows where it lies. In blocks of fixed sizes, forwards whose rows change all the time
    # would leave it in pieces that are too small for the next.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}


def runtime_env() -> dict[str, Any]:
    """Return Ray's runtime_env for ENVIRONMENT; empty if all processes have it, so that Ray can reuse a worker."""
    missing = {name: value for name, value in ENVIRONMENT.items() if os.environ.get(name) != value}
    return {"env_vars": missing} if missing else {}
