"""The text and value nodes: what each makes of what, ComfyUI's own answers where they surprise."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.registry import BUILTIN

PAIRS = "Cat dog\ncat:1 hen:22"
FLAGS = {"case_insensitive": True, "multiline": False, "dotall": False}


def run(class_type: str, *inputs: Any, **named: Any) -> Any:
    return BUILTIN[class_type]().execute(*inputs, **named)[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("class_type", "inputs", "made"),
    [
        ("StringConcatenate", ("a", "b", ", "), "a, b"),
        ("StringSubstring", ("abcdef", 1, -2), "bcd"),
        ("StringLength", ("größe",), 5),
        ("CaseConverter", ("a bC", "UPPERCASE"), "A BC"),
        ("CaseConverter", ("A bC", "lowercase"), "a bc"),
        ("CaseConverter", ("a bC", "Capitalize"), "A bc"),
        ("CaseConverter", ("a bC", "Title Case"), "A Bc"),
        ("StringTrim", (" a\n", "Both"), "a"),
        ("StringTrim", (" a\n", "Left"), "a\n"),
        ("StringTrim", (" a\n", "Right"), " a"),
        ("StringReplace", ("a.a", ".", "-"), "a-a"),
        ("StringContains", ("A cat", "CAT", False), True),
        ("StringContains", ("A cat", "CAT", True), False),
        ("StringCompare", ("Cat", "c", "Starts With", False), True),
        ("StringCompare", ("Cat", "T", "Ends With", True), False),
        ("StringCompare", ("Cat", "cat", "Equal", False), True),
        ("StringCompare", ("Cat", "cat", "Equal", True), False),
        ("PrimitiveInt", (7,), 7),
        ("PrimitiveBoolean", (False,), False),
    ],
)
def test_a_node_makes_of_text_and_values(class_type: str, inputs: tuple[Any, ...], made: Any) -> None:
    assert run(class_type, *inputs) == made


@pytest.mark.parametrize(
    ("pattern", "flags", "matches"),
    [
        ("CAT", {}, True),
        ("CAT", {"case_insensitive": False}, False),
        ("^cat:", {}, False),
        ("^cat:", {"multiline": True}, True),
        ("dog.cat", {}, False),
        ("dog.cat", {"dotall": True}, True),
        ("(", {}, False),
    ],
)
def test_a_pattern_is_looked_for_as_its_flags_say(pattern: str, flags: dict[str, bool], matches: bool) -> None:
    assert run("RegexMatch", PAIRS, pattern, **(FLAGS | flags)) is matches


@pytest.mark.parametrize(
    ("pattern", "mode", "group", "found"),
    [
        ("cat", "First Match", 1, "Cat"),
        ("cat", "All Matches", 1, "Cat\ncat"),
        (r"(\w+):(\d+)", "All Matches", 2, "cat\nhen"),
        (r"(\w+):(\d+)", "First Group", 2, "1"),
        (r"(\w+):(\d+)", "First Group", 0, "cat:1"),
        (r"(\w+):(\d+)", "First Group", 3, ""),
        (r"(\w+):(\d+)", "All Groups", 2, "1\n22"),
        ("cat", "All Groups", 0, ""),
        ("cow", "First Match", 1, ""),
        ("cow", "All Matches", 1, ""),
        ("(", "All Matches", 1, ""),
    ],
)
def test_what_a_pattern_finds_is_a_line_each(pattern: str, mode: str, group: int, found: str) -> None:
    assert run("RegexExtract", PAIRS, pattern, mode, group, **FLAGS) == found


def test_a_pattern_is_replaced_as_often_as_asked() -> None:
    assert run("RegexReplace", "a1b22", r"\d+", "-") == "a-b-"
    assert run("RegexReplace", "a1b22", r"(\d)", r"<\1>", count=2) == "a<1>b<2>2"


def test_letters_beyond_ascii_are_letters_to_a_pattern() -> None:
    assert run("RegexExtract", "größe 5 ٣", r"\w+", "All Matches", 0, **FLAGS) == "größe\n5\n٣"
    assert run("RegexExtract", "größe-5", r"[^\w]", "All Matches", 0, **FLAGS) == "-"
    assert run("RegexReplace", "größe é", r"\u00e9|(ß)", r"<\1é>") == "grö<ßé>e <é>"


@pytest.mark.parametrize(
    ("pattern", "text", "template", "made"),
    [
        (r"\b", "ab c", "|", "|ab| |c|"),
        ("x*", "abxd", "-", "-a-b--d-"),
        (r"(?P<word>a)(b)?", "aab", r"\g<word>\2.\n", "a.\nab.\n"),
        (r"[\]]", "a[b]", r"\.", r"a[b\."),
        (r"end\Z", "end end", "-", "end -"),
    ],
)
def test_a_text_is_replaced_as_python_does(pattern: str, text: str, template: str, made: str) -> None:
    assert run("RegexReplace", text, pattern, template) == made == re.sub(pattern, template, text)


def test_a_pattern_that_would_take_time_beyond_all_bounds_takes_time_in_proportion_to_the_text() -> None:
    text = "a" * 100_000 + "b"
    assert run("RegexMatch", text, "(a+)+$", **FLAGS) is False
    assert run("RegexExtract", text, "(a|aa)+$", "All Matches", 0, **FLAGS) == ""
    assert run("RegexReplace", text, "(a*)*c", "-") == text


@pytest.mark.parametrize("pattern", ["(?=a)a", r"(a)\1", "a{2000}", "(?>a)", "a" * 20_000])
def test_a_pattern_that_cannot_be_matched_so_is_refused_with_what_is_allowed(pattern: str) -> None:
    with pytest.raises(NodeError, match="allowed"):
        run("RegexMatch", "a", pattern, **FLAGS)
    with pytest.raises(NodeError, match="allowed"):
        run("RegexReplace", "a", pattern, "")


def test_a_pattern_or_template_that_is_none_is_pythons_error_when_replacing() -> None:
    for pattern, template in (("(", ""), ("a", r"\1"), ("a", r"\q")):
        with pytest.raises(re.error):
            run("RegexReplace", "a", pattern, template)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("as it is", "as it is"),
        (1.5, "1.5"),
        (True, "True"),
        (None, "None"),
        ([1, {"a": "ä"}], '[\n    1,\n    {\n        "a": "ä"\n    }\n]'),
        (torch.zeros(2000), "tensor([0., 0., 0., 0., 0., 0.,  ..., 0., 0., 0., 0., 0., 0.])"),
        ([(torch.tensor(1), {"pooled_output": None})], "[[tensor(1), {'pooled_output': None}]]"),
        (torch.tensor([1, 2]), "tensor([1, 2])"),
        ({1: torch.tensor(3)}, "{1: tensor(3)}"),
    ],
)
def test_any_value_is_shown_as_text(value: Any, shown: str) -> None:
    assert BUILTIN["PreviewAny"]().main(value) == {"ui": {"text": (shown,)}, "result": (shown,)}
