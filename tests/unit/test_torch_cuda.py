"""Which functions of torch.cuda production calls: each runs here as torch's own Python, and no test replaces one."""

from __future__ import annotations

import ast
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


TORCH_S_OWN = ("torch._C", "torch.__version__", "torch.cuda._initialized", "torch.backends")
"""What tests may set of torch: bindings, below its Python; its version; whether CUDA was started; public settings."""
DOUBLES = {
    "CardTimeline": "timeline_of",
    "CardCopies": "CudaCopies",
    "CardDraws": "CudaDraws",
    "FakeRecorder": "GraphRecorder",
}
"""What stands in tests for a class of this project that calls torch.cuda, and what makes the real one."""
REAL = ROOT / "tests" / "unit" / "engine" / "test_cuda_calls.py"
"""Where the real ones run, on torch's own Python."""
DRIVER = ROOT / "tests" / "unit" / "engine" / "card_driver.py"
"""Where the bindings below it are replaced, and the names that torch's modules took over from them."""


def replaced(path: Path) -> Iterator[str]:
    """Yield what of torch a file replaces: by an assignment, setattr or patch."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign):
            yield from (name for target in node.targets if (name := dotted(target)).startswith("torch."))
        elif isinstance(node, ast.Call) and node.args and SETTERS.search(dotted(node.func)):
            first, *others = node.args
            attribute = literal(others[0]) if others else ""
            name = literal(first) or f"{dotted(first)}.{attribute}"
            if name.startswith("torch."):
                yield name


SETTERS = re.compile(r"(^|\.)(setattr|patch|patch\.object)$")


def literal(node: ast.expr) -> str:
    """Return a string that stands there as it is, or nothing."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def dotted(node: ast.expr) -> str:
    """Return a name with its attributes, or nothing of another expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_no_test_replaces_a_function_of_torch() -> None:
    """Tests replace the bindings below torch's Python (`tests.unit.engine.card_driver`), so that it can refuse."""
    others = (path for path in (ROOT / "tests").rglob("*.py") if path not in (Path(__file__), DRIVER))
    found = {(str(path.relative_to(ROOT)), name) for path in others for name in replaced(path)}
    assert {one for one in found if not one[1].startswith(TORCH_S_OWN)} == set()


def test_what_replaces_a_function_of_torch_is_found(tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(
        "torch.cuda.mem_get_info = None\n"
        "monkeypatch.setattr('torch.cuda.mem_get_info', None)\n"
        "monkeypatch.setattr(torch.cuda, 'mem_get_info', None)\n"
        "mock.patch.object(torch.cuda, 'mem_get_info')\n"
        "mock.patch('torch.cuda.mem_get_info')\n"
        "torch.backends.cudnn.benchmark = True\n"
    )
    assert sorted(replaced(file)) == ["torch.backends.cudnn.benchmark", *["torch.cuda.mem_get_info"] * 5]


def test_of_each_class_that_a_double_stands_for_the_real_one_runs_too() -> None:
    defined = "\n".join(path.read_text() for path in (ROOT / "tests" / "unit").rglob("*.py"))
    for double, real in DOUBLES.items():
        assert f"class {double}" in defined
        assert f"{real}(" in REAL.read_text()
