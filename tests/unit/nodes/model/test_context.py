"""The nodes of context windows."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.errors import NodeError
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.context import ContextWindows
from serve_app.recipe.recipe import Recipe

MODEL = Recipe("backbone", "diffusion_models", "wan.safetensors")
MANUAL: dict[str, Any] = {
    "context_length": 21,
    "context_overlap": 8,
    "context_schedule": "standard_static",
    "context_stride": 1,
    "closed_loop": False,
    "fuse_method": "pyramid",
    "dim": 2,
    "freenoise": True,
    "cond_retain_index_list": "0, 2",
    "split_conds_to_windows": False,
    "latent_retain_index_list": "",
    "causal_window_fix": True,
}


def patched(name: str, **given: Any) -> Recipe:
    node = BUILTIN[name]
    [made] = getattr(node(), node.FUNCTION)(model=MODEL, **given)  # type: ignore[attr-defined]
    assert isinstance(made, Recipe)
    return made


def test_windows_are_a_patch_of_the_model() -> None:
    windows = patched("ContextWindowsManual", **MANUAL).last(ContextWindows)
    assert windows == ContextWindows(21, 8, "standard_static", 1, False, "pyramid", True, (0, 2))


def test_wans_windows_are_counted_in_images() -> None:
    given = {name: MANUAL[name] for name in ("context_schedule", "context_stride", "closed_loop", "fuse_method")}
    off = {"freenoise": False, "split_conds_to_windows": False, "retain_first_frame": True}
    made = patched("WanContextWindowsManual", context_length=81, context_overlap=30, **given, **off)
    assert made.last(ContextWindows) == ContextWindows(21, 7, "standard_static", 1, False, "pyramid", False, (0,))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dim": 0}, "dim is 0; context windows are supported along 2"),
        ({"split_conds_to_windows": True}, "must be false"),
        ({"context_overlap": 21}, "must be shorter"),
        ({"cond_retain_index_list": "first"}, "numbers of latent frames"),
        ({"latent_retain_index_list": "-1"}, "numbers of latent frames"),
    ],
)
def test_what_windows_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(NodeError, match=words):
        patched("ContextWindowsManual", **{**MANUAL, **given})
