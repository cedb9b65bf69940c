"""Packs written against `comfy_api` with dynamic inputs: described as ComfyUI describes them, and run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.api.comfy.object_info import info
from serve_app.execution.call import call, merge
from serve_app.execution.executing import Executing
from serve_app.graph.dynamic import opened
from serve_app.packs.loading import Packs, load_packs

PACK = Path(__file__).with_name("dynamic_pack.txt")
THEIRS: dict[str, Any] = json.loads(PACK.with_suffix(".json").read_text())


@pytest.fixture
def packs(tmp_path: Path) -> Iterator[Packs]:
    before = dict(sys.modules)
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "mine.py").write_text(PACK.read_text())
    yield load_packs(tmp_path / "packs", tmp_path, dict.fromkeys(("input", "output", "temp"), tmp_path))  # type: ignore[misc]
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)


def plain(described: dict[str, Any]) -> dict[str, Any]:
    """Return a description with equivalent forms normalized."""
    inputs = described["input"]
    for section in ("required", "optional"):
        for config in inputs.get(section, {}).values():
            config.extend([{}] if len(config) == 1 else [])
    hidden = {name: kind[0] if isinstance(kind, list) else kind for name, kind in inputs.get("hidden", {}).items()}
    return {**described, "input": {**inputs, "hidden": hidden}}


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_a_class_is_described_as_comfyui_describes_it(packs: Packs, name: str) -> None:
    ours = json.loads(json.dumps(info(packs.specs[name], {})))
    del ours["python_module"]
    assert plain(ours) == plain(json.loads(json.dumps(THEIRS[name])))


async def run(packs: Packs, name: str, **inputs: Any) -> list[Any]:
    spec = opened(packs.specs[name], inputs)
    made = await call(packs.classes[name](), spec, {key: [v] for key, v in inputs.items()}, Executing("job", "9"))
    return [value for slot in merge(made, spec).outputs for value in slot]


async def test_grown_inputs_are_dicts_in_order_and_empty_where_nothing_is_linked(packs: Packs) -> None:
    given = {"images.image0": 1, "images.image1": 2, "values.b": 3, "counts.n4": 4}
    assert await run(packs, "Grow", **given) == [3, "b"]
    assert await run(packs, "Grow", **{"images.image0": 1, "images.image1": 2}) == [2, ""]


async def test_a_choice_comes_with_the_inputs_of_its_option(packs: Packs) -> None:
    assert await run(packs, "Choose", how="by", **{"how.factor": 3.0}) == [{"how": "by", "factor": 3.0}]
    given = {"how": "nested", "how.what": "mask", "how.texts.t0": "a", "colour": "red"}
    nested = {"what": {"m": None, "what": "mask"}, "texts": {"t0": "a"}, "how": "nested"}
    assert await run(packs, "Choose", **given) == [nested]


async def test_a_match_type_passes_on_whichever_it_was_given(packs: Packs) -> None:
    assert await run(packs, "Same", second=True, first=None, other="b") == ["b", 1]
