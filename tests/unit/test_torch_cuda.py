"""Which functions of torch.cuda production calls: each runs here as torch's own Python, and no test replaces one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.packs.comfy import model_management
from tests.unit.models.sample import write_sample_checkpoint
from tests.unit.replica.test_card_replicas import CONFIGS, a_card, picture, pools_of, replicas

ROOT = Path(__file__).parents[2]


@cache
def called() -> dict[str, set[str]]:
    """Return the modules that call each function of torch.cuda."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "serve_app").rglob("*.py"):
        for name in re.findall(r"torch\.cuda\.(\w+)\(", path.read_text()):
            found.setdefault(name, set()).add(str(path.relative_to(ROOT / "serve_app").with_suffix("")))
    return found


def table() -> str:
    """Return the table of docs/gpu.md."""
    modules = {name: ", ".join(f"`{module}`" for module in sorted(of)) for name, of in called().items()}
    return "\n".join(
        ["| torch.cuda | called by |", "|---|---|", *(f"| `{n}` | {modules[n]} |" for n in sorted(modules))]
    )


def test_the_document_lists_all_of_them() -> None:
    assert table() in (ROOT / "docs" / "gpu.md").read_text()


@contextmanager
def noted() -> Iterator[set[str]]:
    """Note which functions of torch.cuda are called; each is torch's own."""
    names = set[str]()

    def noting(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            names.add(name)
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in called():
            patch.setattr(f"torch.cuda.{name}", noting(name, getattr(torch.cuda, name)))
        yield names


async def test_torch_s_own_python_of_each_runs_as_a_replica_draws(tmp_path: Path) -> None:
    write_sample_checkpoint(tmp_path / "models" / "checkpoints" / "tiny.safetensors")
    with a_card(), noted() as names:
        async with replicas(tmp_path, pools_of(CONFIGS["gpu"])) as running:
            for seed in range(2):
                await picture(running, seed, steps=6)
            await running.runners["gpu"].models.release()
        # As node packs call it.
        device = model_management.get_torch_device()
        assert model_management.get_torch_device_name(device)
    assert set(called()) - names == set()


REPLACED = re.compile(
    r"""setattr\(\s*["']?torch\.cuda\b(?!.*_initialized)|patch\(["']torch\.cuda|torch\.cuda\.[a-zA-Z]\w* = """
)
"""How a test replaces one. Whether CUDA has been started, torch itself keeps there."""


def test_no_test_replaces_one() -> None:
    """Tests replace the bindings below torch's Python (`tests.unit.engine.card_driver`), so that it can refuse."""
    others = (path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    assert [str(path.relative_to(ROOT)) for path in others if REPLACED.search(path.read_text())] == []
