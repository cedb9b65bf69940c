"""Tests see what users of a class see: no private name of this project is read from outside of its class."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]

OF_OTHERS = {
    "a process that ends at once, and a frame that is kept": {"_exit", "_getframe"},
    "the card that only claims to be one stands where torch's own C++ would": {
        *("_CUDAGraph", "_CudaEventBase", "_CudaStreamBase", "_disabled_torch_function_impl", "_foreach_copy_"),
        *("_initialized", "_make_wrapper_subclass", "_qualified_op_name", "_queued_calls", "_can_decompose", "_cdata"),
        *("_C", "_to_copy"),
    },
    "a layer's tensors and hooks, as torch's documents name them": {
        *("_buffers", "_forward_hooks", "_forward_pre_hooks", "_parameters"),
    },
    "torch.compile's settings": {"_config", "_dynamo"},
    "attention packages that are not installed": {"_AttentionBackendRegistry", "_backends"},
    "what Ray makes of our settings": {"_deployment_config", "_generate_config_file_internal"},
    "diffusers' own pipeline, beside which texts are encoded": {"_get_qwen3_vl_prompt_embeds"},
    "the figures of ComfyUI that are recorded": {"_denoise_mask_values", "_forward_propagation", "_weight_norm_conv"},
    "named tuples": {"_asdict", "_fields", "_replace"},
}
"""Private names of other libraries that tests read, by the reason."""


MAYBE = re.compile(r"(?<!\bself)(?<!\bcls)\._[a-zA-Z]|\bimport (\([^)]*|[^\n(]*)\b_[a-zA-Z]")
"""What a module that reads one has in its text: most have not, and are not parsed."""


def private_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and name of each private name that a module reads of something else than itself."""
    for node in ast.walk(ast.parse(source if MAYBE.search(source) else "")):
        if isinstance(node, ast.Attribute) and not is_own(node.value):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("serve_app", "tests")):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.startswith("_") and not name.startswith("__"))


def is_own(value: ast.expr) -> bool:
    """Whether an attribute is read of the object itself, or of its base class."""
    if isinstance(value, ast.Call):
        return ast.unparse(value.func) == "super"
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def test_no_test_reads_a_private_name() -> None:
    known = set[str]().union(*OF_OTHERS.values())
    found = [
        f"{path.relative_to(TESTS)}:{line} {name}"
        for path in TESTS.rglob("*.py")
        for line, name in private_names(path.read_text())
        if name not in known
    ]
    assert found == []


def test_a_private_name_is_found_wherever_it_is_read() -> None:
    source = "from serve_app.x import _y\nengine._thread\nself._own\nsuper()._own\nx.__dict__\na()._b.c"
    assert sorted(private_names(source)) == [(1, "_y"), (2, "_thread"), (6, "_b")]
