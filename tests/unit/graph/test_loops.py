"""Loops in a graph: what is refused before it runs, and which ends run though no output asks for them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest

from serve_app.graph.loops import MOST_LOOPS, closing
from serve_app.graph.parse import parse
from serve_app.graph.validate import Validated, validate
from serve_app.nodes.registry import specs
from serve_app.nodes.unsupported import NOT_THERE

START = ("StartLoop", {"mode": "simple", "mode.num_iterations": 3, "cache_iterations": False})
IMAGE = ("EmptyImage", {"width": 16, "height": 16, "batch_size": 1, "color": ["start", 0]})
SAVE = ("SaveImage", {"images": ["image", 0], "filename_prefix": "a"})
END = ("EndLoop", {"accumulate": True, "output_value": ["image", 0]})


def checked(targets: list[str] | None = None, **nodes: tuple[str, Mapping[str, Any]]) -> Validated:
    prompt = {key: {"class_type": kind, "inputs": dict(inputs)} for key, (kind, inputs) in nodes.items()}
    return validate(parse(prompt), specs(), lambda folder: [], targets, NOT_THERE)


def after_end(end: str = "end") -> tuple[str, dict[str, Any]]:
    return ("SaveImage", {"images": [end, 0], "filename_prefix": "a"})


def test_a_loop_whose_end_an_output_asks_for_is_right() -> None:
    found = checked(start=START, image=IMAGE, end=END, save=after_end())
    assert (found.outputs, found.problems) == (("save",), ())


def test_a_loop_that_saves_in_each_iteration_runs_though_nothing_asks_for_its_end() -> None:
    end = ("EndLoop", {"accumulate": False, "terminations.termination0": ["save", 0]})
    found = checked(start=START, image=IMAGE, save=SAVE, end=end)
    assert (found.outputs, found.problems) == (("save", "end"), ())
    assert checked(["save"], start=START, image=IMAGE, save=SAVE, end=end).outputs == ("save", "end")


@pytest.mark.parametrize(
    ("nodes", "node", "reason"),
    [
        ({"start": START, "image": IMAGE, "save": SAVE}, "start", "no End Loop closes it"),
        (
            {"image": ("EmptyImage", {**IMAGE[1], "color": 0}), "end": END, "save": after_end()},
            "end",
            "no Start Loop is before it",
        ),
        (
            {"start": START, "image": IMAGE, "save": SAVE, "end": END, "kept": after_end()},
            "save",
            "it is in the loop that begins with node start, and node end does not end it: connect it to a termination",
        ),
        (
            {
                "start": START,
                "image": IMAGE,
                "end": ("EndLoop", {**END[1], "accumulate": ["start", 1]}),
                "save": after_end(),
            },
            "end",
            "accumulate depends on node start, which is in the loop",
        ),
    ],
)
def test_what_is_wrong_with_a_loop_is_said_before_it_runs(nodes: dict[str, Any], node: str, reason: str) -> None:
    found = checked(**nodes)
    [problem] = found.problems
    assert (problem.node_id, problem.type) == (node, "custom_validation_failed")
    assert problem.details.startswith(reason)


def test_a_loop_that_no_output_needs_is_not_looked_at() -> None:
    found = checked(start=START, image=("EmptyImage", {**IMAGE[1], "color": 0}), save=SAVE)
    assert (found.outputs, found.problems) == (("save",), ())


def test_loops_in_a_circle_and_links_to_nothing_are_other_problems() -> None:
    circle = ("EndLoop", {"accumulate": True, "output_value": ["end", 0]})
    assert "dependency_cycle" in {problem.type for problem in checked(end=circle, save=after_end()).problems}
    lost = ("EndLoop", {"accumulate": True, "output_value": ["nowhere", 0]})
    assert "custom_validation_failed" in {problem.type for problem in checked(end=lost, save=after_end()).problems}


def test_what_is_looked_at_grows_with_loops_and_not_with_outputs() -> None:
    """Of two thousand nodes in a row, each of them shown, the sources of each output would take some 50 MB."""
    row = {"0": ("StartLoop", {}), **{str(n): ("ImageInvert", {"image": [str(n - 1), 0]}) for n in range(1, 2_000)}}
    shown = {f"shown {n}": ("PreviewImage", {"images": [str(n), 0]}) for n in range(1, 2_000)}
    graph = parse({name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in {**row, **shown}.items()})
    tracemalloc.start()
    try:
        found = closing(graph, list(shown))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == ([], [("0", "no End Loop closes it")])
    assert peak < 8 * 2**20


def test_a_graph_of_too_many_loops_is_refused() -> None:
    starts = {f"s{n}": {"class_type": "StartLoop", "inputs": {}} for n in range(MOST_LOOPS + 1)}
    assert closing(parse(starts), []) == ([], [(f"s{MOST_LOOPS}", "it is one of 51; a graph may have 50")])
