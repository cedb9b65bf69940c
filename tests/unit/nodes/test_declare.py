"""A node is declared once: what a typed function says of the class that stands for it."""

from __future__ import annotations

import asyncio
import inspect
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import pytest

from serve_app.execution.protocol import FolderChoice, spec_of
from serve_app.graph.spec import MATCH_TYPE, Input
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Autogrow, Bool, Choice, Combo, DynamicCombo, File, Float, Int, MatchType, Text
from serve_app.nodes.registry import modules
from serve_app.nodes.sockets import ANY, IMAGE, INT, MASK, PROMPT, RUNTIME, STORE
from serve_app.packs.library import library

LISTED = Combo(FolderChoice("input"), video_upload=True)
GROWING = Autogrow(Int(2), name="value", prefix="value", least=0)


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """The classes that a test declares, by name."""
    classes: dict[str, type] = {}
    monkeypatch.setitem(globals(), "NODE_CLASS_MAPPINGS", classes)
    monkeypatch.setitem(globals(), "NODE_DISPLAY_NAME_MAPPINGS", {})
    return classes


def test_a_signature_is_the_inputs_and_outputs_of_its_class(declared: dict[str, type]) -> None:
    @node("Odd One", "An odd one", category="odd", function="go", return_names=("picture", "hole"), deprecated=True)
    def odd_one(
        image: IMAGE,
        count: Annotated[int, Int(2, min=1, max=9, tooltip="How many.")],
        mode: Annotated[str, Choice(("fast", "slow"))],
        file: Annotated[str, File("loras")],
        video: Annotated[str, LISTED],
        store: STORE,
        prompt: PROMPT,
        limit: int = 3,
        mask: MASK | None = None,
        bright: Annotated[float, Float(1.0, step=0.1)] = 1.0,
    ) -> tuple[IMAGE, MASK]:
        """An odd one."""
        return image, image[..., 0]

    [(name, made)] = declared.items()
    spec = spec_of(made, name)
    assert spec.inputs == (
        Input("image", "IMAGE"),
        Input("count", "INT", options={"default": 2, "min": 1, "max": 9, "tooltip": "How many."}),
        Input("mode", "COMBO", choices=("fast", "slow")),
        Input("file", "COMBO", folder="loras"),
        Input("video", "COMBO", folder="input", options={"multiselect": False, "video_upload": True}),
        Input("mask", "MASK", "optional"),
        Input("bright", "FLOAT", "optional", options={"default": 1.0, "step": 0.1}),
    )
    assert (spec.hidden, spec.outputs) == ({"store": "STORE", "prompt": "PROMPT"}, ("IMAGE", "MASK"))
    assert (spec.output_names, spec.category, spec.deprecated) == (("picture", "hole"), "odd", True)
    assert (spec.output_is_list, spec.input_is_list) == ((False, False), False)
    assert (made.FUNCTION, made.__doc__, made.__module__) == ("go", "An odd one.", __name__)  # type: ignore[attr-defined]
    assert globals()["NODE_DISPLAY_NAME_MAPPINGS"] == {"Odd One": "An odd one"}


def test_options_keep_their_order_and_an_input_type_is_given_to_each_who_asks(declared: dict[str, type]) -> None:
    @node("N", category="c")
    def n(a: Annotated[int, Int(1, max=9, min=0)], b: Annotated[str, Text(multiline=True)], c: INT) -> INT:
        return a + c

    made: Any = declared["N"]
    types = made.INPUT_TYPES()
    assert [list(types["required"]["a"][1]), types["required"]["c"]] == [["default", "max", "min"], ("INT", {})]
    types["required"]["a"][1]["max"] = 1
    assert made.INPUT_TYPES()["required"]["a"] == ("INT", {"default": 1, "max": 9, "min": 0})


def test_a_class_returns_a_tuple_of_what_its_function_returns_alone(declared: dict[str, type]) -> None:
    @node("One", category="c")
    def one(value: INT, on: Annotated[bool, Bool(True)] = True) -> INT:
        return value + on

    @node("Waits", category="c", function="wait_for")
    async def waits(value: INT, runtime: RUNTIME) -> INT:
        await asyncio.sleep(0)
        return value

    @node("Shows", category="c", return_types=("INT",), output_node=True)
    def shows(value: INT) -> dict[str, Any]:
        return {"ui": {"text": [str(value)]}, "result": (value,)}

    made: Any = declared
    assert (one(2), made["One"]().execute(2), made["One"]().execute(value=2, on=False)) == (3, (3,), (2,))
    assert inspect.iscoroutinefunction(made["Waits"].wait_for)
    assert asyncio.run(made["Waits"]().wait_for(1, None)) == (1,)
    assert made["Shows"]().execute(4) == {"ui": {"text": ["4"]}, "result": (4,)}
    assert made["Shows"].RETURN_TYPES == ("INT",)


def test_packs_call_a_class_by_the_parameters_of_its_function(declared: dict[str, type]) -> None:
    @node("One", category="c", function="go")
    def one(first: INT, second: INT = 5) -> INT:
        return 10 * first + second

    assert list(inspect.signature(declared["One"]().go).parameters) == ["first", "second"]  # type: ignore[attr-defined]
    called: Any = library(declared)["One"]
    assert called().go(1, second=2) == (12,)
    assert called.execute(3)[0] == 35


def test_lists_on_both_sides_are_lists_in_the_annotations(declared: dict[str, type]) -> None:
    @node("Lists", category="c")
    def lists(images: list[IMAGE], counts: list[INT] | None = None) -> tuple[list[IMAGE], INT]:
        return images, len(images)

    spec = spec_of(declared["Lists"], "Lists")
    assert (spec.input_is_list, spec.output_is_list, spec.outputs) == (True, (True, False), ("IMAGE", "INT"))
    assert [(i.name, i.type, i.section) for i in spec.inputs] == [
        ("images", "IMAGE", "required"),
        ("counts", "INT", "optional"),
    ]


def test_what_a_signature_cannot_say_the_decorator_does(declared: dict[str, type]) -> None:
    weights = {f"w{number}": Float(1.0) for number in range(2)}

    @node("More", category="c", required=("b",), order=("b",), inputs=weights, optional_inputs={"z": Int()})
    def more(a: INT, b: INT = 1, **given: Any) -> INT:
        return a + b

    types = declared["More"].INPUT_TYPES()  # type: ignore[attr-defined]
    assert {section: list(inputs) for section, inputs in types.items()} == {
        "required": ["b", "a", "w0", "w1"],
        "optional": ["z"],
    }


def test_dynamic_inputs_and_hooks_are_those_of_the_protocol(declared: dict[str, type]) -> None:
    def wanted(on: bool, value: Any = None) -> list[str]:
        return ["value"] if on else []

    @node("Dynamic", category="c", check_lazy_status=wanted, validate_inputs=lambda on: True)
    def dynamic(
        on: Annotated[bool, Bool(False)],
        value: Annotated[Any, MatchType("t", lazy=True)],
        values: Annotated[Any, GROWING],
        format: Annotated[Any, DynamicCombo({"png": {"depth": Int(8)}})],
        other: ANY,
    ) -> tuple[Annotated[Any, MatchType("t")], INT]:
        return value, 1

    made: Any = declared["Dynamic"]
    types = made.INPUT_TYPES()["required"]
    assert types["values"][1]["template"]["input"] == {"required": {"value": ("INT", {"default": 2})}}
    assert types["format"][1]["options"] == [{"key": "png", "inputs": {"required": {"depth": ("INT", {"default": 8})}}}]
    assert (made.RETURN_TYPES, made.OUTPUT_MATCHTYPES) == ((MATCH_TYPE, "INT"), ("t", None))
    assert made().check_lazy_status(True) == ["value"]
    assert spec_of(made, "Dynamic").validator == ("on",)


def test_a_new_module_below_the_package_is_found_without_being_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rooms" / "room").mkdir(parents=True)
    (tmp_path / "rooms" / "__init__.py").touch()
    (tmp_path / "rooms" / "room" / "__init__.py").touch()
    (tmp_path / "rooms" / "room" / "new.py").write_text(
        "from serve_app.nodes.declare import node\nfrom serve_app.nodes.sockets import INT\n\n"
        "@node('New', 'A new one', category='c')\ndef new(value: INT) -> INT:\n    return value\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    *_, module = modules(import_module("rooms"))
    assert (module.__name__, list(module.NODE_CLASS_MAPPINGS)) == ("rooms.room.new", ["New"])
    assert module.NODE_DISPLAY_NAME_MAPPINGS == {"New": "A new one"}
