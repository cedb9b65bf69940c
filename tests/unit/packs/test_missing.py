"""Names of ComfyUI's that are not here: packs import them, and which classes come to use them is known as data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from serve_app.cli.packs import report_lines
from serve_app.graph.parse import parse
from serve_app.graph.validate import validate
from serve_app.packs.loading import Packs, load_packs
from serve_app.packs.missing import MissingNameError
from serve_app.packs.static_analysis import analyse

PACK = """
    import importlib
    import nodes
    import comfy.sd
    import comfy.model_patcher as patcher
    import comfy.utils
    from comfy.ldm.modules.attention import CrossAttention, BasicTransformerBlock
    from comfy_extras.nodes_mask import MaskComposite
    from comfy_extras.nodes_lt import LTXVDurationPredictor
    from .inner import Inner, helper
    import node_helpers

    class Base:
        RETURN_TYPES = ("INT",)
        FUNCTION = "go"
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}
        def go(self):
            return (1,)

    class Free(Base): ...

    class Direct(Base):
        def go(self):
            return (CrossAttention(1, 2),)

    class ByModule(Base):
        def go(self):
            return (comfy.sd.load_gligen(None),)

    class ByHelper(Base):
        def go(self):
            return (helper(3),)

    class ByClass(Base):
        def go(self):
            return (Inner().value,)

    class ByImport(Base):
        def go(self):
            from comfy.samplers import KSamplerX0Inpaint
            return (KSamplerX0Inpaint(),)

    class ByClosure(Base):
        def go(self):
            def inner():
                return [patcher.AutoPatcherEjector() for _ in range(2)]
            return (inner(),)

    class Block(BasicTransformerBlock):
        pass

    class BySubclass(Base):
        def go(self):
            return (Block(),)

    class Masks(Base):
        def go(self):
            return (MaskComposite,)

    class Video(Base):
        def go(self):
            return (LTXVDurationPredictor,)

    class Samples(Base):
        def go(self):
            return nodes.common_ksampler(None, 1, 2, 3, "euler", "normal", [], [], {})

    class Annotated(Base):
        def go(self, model: comfy.sd.StyleModel | None = None):
            return (isinstance(1, comfy.sd.StyleModel), comfy.utils.repeat_to_batch_size)

    NODE_CLASS_MAPPINGS = {name: c for name, c in list(globals().items())
                           if isinstance(c, type) and issubclass(c, Base) and c is not Base}
"""
INNER = """
    import comfy.gligen

    def helper(n):
        return n and comfy.gligen.load_gligen(n)

    class Inner:
        @property
        def value(self):
            return comfy.gligen.Gligen(1)
"""


def reads() -> object:
    return json.absent  # type: ignore[attr-defined]


LACKS = {
    "Free": (),
    "Direct": ("comfy.ldm.modules.attention.CrossAttention",),
    "ByModule": ("comfy.sd.load_gligen",),
    "ByHelper": ("comfy.gligen.load_gligen",),
    "ByClass": ("comfy.gligen.Gligen",),
    "ByImport": ("comfy.samplers.KSamplerX0Inpaint",),
    "ByClosure": ("comfy.model_patcher.AutoPatcherEjector",),
    "BySubclass": ("comfy.ldm.modules.attention.BasicTransformerBlock",),
    "Masks": (),
    "Video": ("comfy_extras.nodes_lt.LTXVDurationPredictor",),
    "Samples": (),
    "Annotated": ("comfy.sd.StyleModel",),
}


@pytest.fixture
def packs(tmp_path: Path) -> Iterator[Packs]:
    modules, finders = dict(sys.modules), list(sys.meta_path)
    folder = tmp_path / "packs" / "one"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(dedent(PACK))
    (folder / "inner.py").write_text(dedent(INNER))
    yield load_packs(tmp_path / "packs", tmp_path, dict.fromkeys(("input", "output", "temp"), tmp_path))  # type: ignore[misc]
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)
    sys.meta_path[:] = finders


def test_a_pack_that_names_what_is_missing_loads_whole(packs: Packs) -> None:
    assert packs.failures == {}
    assert set(packs.classes) == set(LACKS)


def test_what_a_class_can_come_to_use_is_found_along_every_path(packs: Packs) -> None:
    assert {name: spec.lacks for name, spec in packs.specs.items()} == LACKS


def test_a_modules_own_getattr_is_not_called_by_the_analysis(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(json, "__getattr__", asked.append, raising=False)
    node_class = packs.classes["Free"]
    analyse(type("Reads", (node_class,), {"go": reads}), Path(__file__).parent)
    assert asked == []


def test_a_class_that_calls_a_node_with_models_needs_a_replica_that_holds_them(packs: Packs) -> None:
    assert [name for name, spec in packs.specs.items() if spec.runtime] == ["Samples"]


@pytest.mark.parametrize("used", ["Direct", "ByModule", "ByHelper", "ByClass", "ByImport", "ByClosure", "BySubclass"])
def test_a_missing_name_says_which_it_is_once_it_is_used(packs: Packs, used: str) -> None:
    with pytest.raises(MissingNameError, match=r"docs/comfyui-pool\.md") as raised:
        packs.classes[used]().go()  # type: ignore[attr-defined]
    assert raised.value.name in LACKS[used]


def test_what_is_not_used_hinders_nothing(packs: Packs) -> None:
    assert packs.classes["Annotated"]().go()[0] is False  # type: ignore[attr-defined]


def test_names_that_are_nobodys_stay_unknown(packs: Packs) -> None:
    with pytest.raises(ModuleNotFoundError):
        __import__("comfyui_something")
    assert not hasattr(sys.modules["comfy.sd"], "__wrapped__")


def test_a_job_with_a_class_that_lacks_something_is_refused_with_its_name(packs: Packs) -> None:
    found = validate(parse({"1": {"class_type": "ByModule", "inputs": {}}}), packs.specs, lambda folder: [])
    problem = found.problems[0]
    assert problem.type == "missing_node_type"
    assert "comfy.sd.load_gligen" in problem.message
    assert "pool that runs ComfyUI" in problem.message
    assert found.outputs == ()


def test_the_table_of_packs_counts_classes_and_names_what_is_missing(packs: Packs) -> None:
    head, row, total = report_lines(packs)
    assert head.split() == ["pack", "classes", "run", "here", "missing"]
    assert row.split()[:3] == ["one", "12", "3"]
    assert total == "3 of 12 classes can run here (25%); 0 packs are left out"
