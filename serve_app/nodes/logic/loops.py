"""Loops: nodes between a start and an end that are evaluated once an iteration, as a subgraph of copies.

What is between them is what depends on the start and what the end depends on (`graph/loops.py`). The end asks for none
of it: it is replaced by `LoopUnrolled`, which is given what the start is given, and that by the copies. The start
itself gives nothing, so whatever looks at it outside the loop is blocked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from serve_app.errors import NodeError
from serve_app.execution.call import ExecutionBlocker
from serve_app.execution.expansion import DynamicPrompt
from serve_app.graph.loops import Loops
from serve_app.graph.spec import MATCH_TYPE
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Autogrow, Bool, DynamicCombo, InputType, Int, MatchType
from serve_app.nodes.sockets import ANY, BOOLEAN, DYNPROMPT, INT, STRING, UNIQUE_ID

CATEGORY = "utilities/looping"
INDEX, FIRST, LAST, ITEM, CARRIED = range(5)
"""The slots of a start."""
UNBOUNDED = 0xFFFFFFFFFFFFFFFF
MOST_COPIES = 100_000
"""Of nodes in all iterations of a loop: what is kept of each takes memory at once."""


Mode: TypeAlias = Annotated[
    Mapping[str, Any],
    DynamicCombo(
        {
            "simple": {"num_iterations": Int(4, min=0, tooltip="How many iterations there are.")},
            "For": {
                "start_iteration_index": Int(0, tooltip="The index of the first iteration."),
                "max_iteration": Int(4, max=UNBOUNDED, tooltip="The index that is not reached any more."),
                "step": Int(1, min=1, tooltip="From one index to the next."),
            },
            "List": {"list": MatchType("list_item", tooltip="There is an iteration for each of its items.")},
        },
        tooltip="What there is an iteration for.",
    ),
]
Terminations: TypeAlias = Annotated[
    Any,
    Autogrow(
        InputType("*", {"lazy": True, "tooltip": "What is evaluated in every iteration, too."}),
        name="termination",
        prefix="termination",
        least=0,
        most=50,
    ),
]
AnyValue: TypeAlias = Annotated[Any, InputType("*")]
Cached: TypeAlias = Annotated[
    bool, Bool(False, advanced=True, tooltip="Has no effect here: equal work is never done twice.")
]
Outer: TypeAlias = Annotated[int, Int(forceInput=True, tooltip="The iteration_index of a loop around this one.")]
Accumulate: TypeAlias = Annotated[
    bool, Bool(False, tooltip="Whether outputs has the output_value of every iteration, or the last one's.")
]


@node(
    "StartLoop",
    "Start Loop",
    category=CATEGORY,
    return_names=("iteration_index", "is_first", "is_last", "list_item", "current_iteration_value"),
    input_is_list=True,
)
def start_loop(
    mode: Mode,
    cache_iterations: Cached,
    parent_iteration: Outer | None = None,
    initial_iteration_value: Annotated[
        Any, MatchType("carried_value", lazy=True, tooltip="What is carried at first.")
    ] = None,
) -> tuple[INT, BOOLEAN, BOOLEAN, Annotated[Any, MatchType("list_item")], Annotated[Any, MatchType("carried_value")]]:
    """Where a loop begins: what its nodes are given in each iteration. Blocks whatever looks at it outside the loop."""
    blocked: Any = ExecutionBlocker()
    return blocked, blocked, blocked, blocked, blocked


@node(
    "EndLoop",
    "End Loop",
    category=CATEGORY,
    return_types=(MATCH_TYPE,),
    return_names=("outputs",),
    output_matchtypes=("output_value",),
    output_is_list=(True,),
)
def end_loop(
    prompt: DYNPROMPT,
    end: UNIQUE_ID,
    accumulate: Accumulate,
    output_value: Annotated[Any, MatchType("output_value", lazy=True, tooltip="What is kept.")] = None,
    next_iteration_value: Annotated[
        Any, MatchType("carried_value", lazy=True, tooltip="What the next is given.")
    ] = None,
    terminations: Terminations = None,
) -> dict[str, Any]:
    """Where a loop ends: what is kept of its iterations, and what one hands to the next.

    Return the loop unrolled in place of this node. Errors: NodeError if nothing before it starts a loop.
    """
    start = _loops(prompt).start_of(end)
    given = prompt.get_node(start).get("inputs") or {}
    inputs = {name: value for name, value in given.items() if name.partition(".")[0] == "mode"}
    unrolled = {"class_type": "LoopUnrolled", "inputs": {**inputs, "end": end}, "override_display_id": start}
    return {"expand": {f"{end}.loop": unrolled}, "result": ([f"{end}.loop", 0],)}


@node("LoopUnrolled", category=CATEGORY, return_types=("*",), dev_only=True)
def loop_unrolled(mode: Mode, end: list[STRING], prompt: list[DYNPROMPT]) -> dict[str, Any]:
    """A loop's iterations, once it is known how many there are.

    Return the copies of all iterations, and a list of what is kept of them.
    """
    return _unrolled(prompt[0], end[0], _iterations(mode))


@node("LoopOutputs", category=CATEGORY, dev_only=True, accept_all_inputs=True, input_is_list=True)
def loop_outputs(**values: list[Any]) -> ANY:
    """What is kept of a loop, once all of every iteration is evaluated, iteration by iteration."""
    return [value for name, own in values.items() if name.startswith("output") for value in own]


@node("LoopInOrder", category=CATEGORY, dev_only=True)
def loop_in_order(value: list[AnyValue], after: list[AnyValue]) -> list[ANY]:
    """A value, as it is, once something else is evaluated."""
    return value


def _iterations(mode: Mapping[str, Any]) -> tuple[range, Sequence[Any]]:
    """Return the indexes of a mode's iterations, and the items that they are for, if any. Its values are lists."""
    match mode["mode"][0]:
        case "simple":
            return range(mode["num_iterations"][0]), ()
        case "For":
            numbers = (mode[name][0] for name in ("start_iteration_index", "max_iteration", "step"))
            return range(*numbers), ()
        case _:
            return range(len(mode["list"])), mode["list"]


def _count(numbers: range) -> int:
    """Return how many they are, however large they are."""
    return (numbers[-1] - numbers[0]) // numbers.step + 1 if numbers else 0


def _unrolled(prompt: DynamicPrompt, end: str, iterations: tuple[range, Sequence[Any]]) -> dict[str, Any]:
    loops = _loops(prompt)
    start = loops.start_of(end)
    body = loops.between(start, end)
    indexes, items = iterations
    if (copies := _count(indexes) * (len(body) + 1)) > MOST_COPIES:
        raise NodeError(
            f"{_count(indexes):,} iterations of {len(body)} nodes, and what is kept of each, come to {copies:,}; "
            f"a loop may have {MOST_COPIES:,}"
        )
    ends = prompt.get_node(end)["inputs"]
    carried = (prompt.get_node(start).get("inputs") or {}).get("initial_iteration_value")
    ordered = {_source(value) for name, value in ends.items() if name.startswith("terminations.")}
    subgraph: dict[str, Any] = {}
    kept: list[Any] = []
    also: list[Any] = []
    for place, index in enumerate(indexes):
        item = items[place] if items else None
        given = (index, place == 0, place == len(indexes) - 1, item, carried)
        names = {node_id: f"{end}.{place}.{node_id}" for node_id in body}

        def copied(value: Any, given: Sequence[Any] = given, names: Mapping[str, str] = names) -> Any:
            if (source := _source(value)) is None:
                return value
            if source == start:
                return given[value[1]]
            return [names.get(source, source), value[1]]

        for node_id, copy in names.items():
            original = prompt.get_node(node_id)
            inputs = {name: copied(value) for name, value in (original.get("inputs") or {}).items()}
            linked = next((name for name, value in inputs.items() if _source(value) is not None), None)
            if place and node_id in ordered and linked is not None:
                # Files are saved in the order of iterations.
                previous = {"value": inputs[linked], "after": [f"{end}.{place - 1}.{node_id}", 0]}
                subgraph[f"{copy}.ordered"] = {"class_type": "LoopInOrder", "inputs": previous}
                inputs[linked] = [f"{copy}.ordered", 0]
            subgraph[copy] = {"class_type": original["class_type"], "inputs": inputs, "override_display_id": node_id}
        ended = {name: copied(value) for name, value in ends.items() if _source(value) is not None}
        carried = ended.get("next_iteration_value", carried)
        if "output_value" in ended and (ends.get("accumulate") or place == len(indexes) - 1):
            kept.append(ended["output_value"])
        also += [value for name, value in ended.items() if name.startswith("terminations.")]
    # What is kept may itself be given by the start.
    values = {f"output{i}": value for i, value in enumerate(kept)}
    values |= {f"also{i}": value for i, value in enumerate(also) if _source(value) is not None}
    result = f"{end}.outputs"
    subgraph[result] = {"class_type": "LoopOutputs", "inputs": values}
    return {"expand": subgraph, "result": ([result, 0],)}


def _loops(prompt: DynamicPrompt) -> Loops:
    def links(node_id: str) -> list[str]:
        inputs = (prompt.get_node(node_id).get("inputs") or {}).values()
        return [source for value in inputs if (source := _source(value)) is not None]

    return Loops(links, lambda node_id: str(prompt.get_node(node_id)["class_type"]))


def _source(value: Any) -> str | None:
    """Return the node that an input in wire JSON links to; None for a constant."""
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
    return value[0] if is_link else None
