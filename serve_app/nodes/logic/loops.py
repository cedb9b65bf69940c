"""Loops: nodes between a start and an end that are evaluated once an iteration, as a subgraph of copies.

What is between them is what depends on the start and what the end depends on. The end asks for none of it: it is
replaced by `LoopUnrolled`, which is given what the start is given, and that by the copies. The start itself gives
nothing, so whatever looks at it outside the loop is blocked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.errors import NodeError
from serve_app.execution.call import ExecutionBlocker
from serve_app.execution.expansion import DynamicPrompt
from serve_app.graph.spec import MATCH_TYPE
from serve_app.nodes.dynamic_inputs import autogrow, dynamic_combo, match_type

CATEGORY = "utilities/looping"
START, END = "StartLoop", "EndLoop"
INDEX, FIRST, LAST, ITEM, CARRIED = range(5)
"""The slots of a start."""
UNBOUNDED = 0xFFFFFFFFFFFFFFFF
MOST_LOOPS, MOST_COPIES = 50, 100_000
"""Of loops before an end, and of nodes in all iterations of one: what is kept of each takes memory at once."""


def _mode() -> tuple[str, dict[str, Any]]:
    whole: Mapping[str, Any] = {"default": 4}
    simple = {"num_iterations": ("INT", {**whole, "min": 0, "tooltip": "How many iterations there are."})}
    counted = {
        "start_iteration_index": ("INT", {"default": 0, "tooltip": "The index of the first iteration."}),
        "max_iteration": ("INT", {**whole, "max": UNBOUNDED, "tooltip": "The index that is not reached any more."}),
        "step": ("INT", {"default": 1, "min": 1, "tooltip": "From one index to the next."}),
    }
    listed = {"list": match_type("list_item", tooltip="There is an iteration for each of its items.")}
    options: Mapping[str, Mapping[str, Any]] = {"simple": simple, "For": counted, "List": listed}
    return dynamic_combo(options, tooltip="What there is an iteration for.")


class StartLoop:
    """Where a loop begins: what its nodes are given in each iteration."""

    RETURN_TYPES = ("INT", "BOOLEAN", "BOOLEAN", MATCH_TYPE, MATCH_TYPE)
    RETURN_NAMES = ("iteration_index", "is_first", "is_last", "list_item", "current_iteration_value")
    OUTPUT_MATCHTYPES = (None, None, None, "list_item", "carried_value")
    INPUT_IS_LIST = True
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        cached = {"default": False, "advanced": True, "tooltip": "Has no effect here: equal work is never done twice."}
        outer = {"forceInput": True, "tooltip": "The iteration_index of a loop around this one."}
        return {
            "required": {"mode": _mode(), "cache_iterations": ("BOOLEAN", cached)},
            "optional": {
                "parent_iteration": ("INT", outer),
                "initial_iteration_value": match_type("carried_value", lazy=True, tooltip="What is carried at first."),
            },
        }

    def execute(self, **_: Any) -> tuple[ExecutionBlocker, ...]:
        """Block whatever looks at it outside the loop's end."""
        return (ExecutionBlocker(),) * len(self.RETURN_TYPES)


class EndLoop:
    """Where a loop ends: what is kept of its iterations, and what one hands to the next."""

    RETURN_TYPES = (MATCH_TYPE,)
    RETURN_NAMES = ("outputs",)
    OUTPUT_MATCHTYPES = ("output_value",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        also = ("*", {"lazy": True, "tooltip": "What is evaluated in every iteration, too."})
        kept = "Whether outputs has the output_value of every iteration, or the last one's."
        return {
            "required": {"accumulate": ("BOOLEAN", {"default": False, "tooltip": kept})},
            "optional": {
                "output_value": match_type("output_value", lazy=True, tooltip="What is kept."),
                "next_iteration_value": match_type("carried_value", lazy=True, tooltip="What the next is given."),
                "terminations": autogrow(also, name="termination", prefix="termination", least=0, most=50),
            },
            "hidden": {"prompt": "DYNPROMPT", "end": "UNIQUE_ID"},
        }

    def execute(self, prompt: DynamicPrompt, end: str, **_: Any) -> dict[str, Any]:
        """Return the loop unrolled in place of this node. Errors: NodeError if nothing before it starts a loop."""
        start = _Loops(prompt).start_of(end)
        given = prompt.get_node(start).get("inputs") or {}
        inputs = {name: value for name, value in given.items() if name.partition(".")[0] == "mode"}
        unrolled = f"{end}.loop"
        node = {"class_type": "LoopUnrolled", "inputs": {**inputs, "end": end}, "override_display_id": start}
        return {"expand": {unrolled: node}, "result": ([unrolled, 0],)}


class LoopUnrolled:
    """A loop's iterations, once it is known how many there are."""

    RETURN_TYPES = ("*",)
    INPUT_IS_LIST = True
    FUNCTION = "execute"
    CATEGORY = CATEGORY
    DEV_ONLY = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mode": _mode(), "end": ("STRING", {})}, "hidden": {"prompt": "DYNPROMPT"}}

    def execute(self, mode: Mapping[str, Any], end: Sequence[str], prompt: Sequence[DynamicPrompt]) -> dict[str, Any]:
        """Return the copies of all iterations, and a list of what is kept of them."""
        return _unrolled(prompt[0], end[0], _iterations(mode))


class LoopOutputs:
    """What is kept of a loop, once all of every iteration is evaluated."""

    RETURN_TYPES = ("*",)
    INPUT_IS_LIST = True
    FUNCTION = "execute"
    CATEGORY = CATEGORY
    DEV_ONLY = True

    ACCEPT_ALL_INPUTS = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def execute(self, **values: list[Any]) -> tuple[list[Any]]:
        """Return the outputs' values, iteration by iteration."""
        return ([value for name, own in values.items() if name.startswith("output") for value in own],)


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
    loops = _Loops(prompt)
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
            subgraph[copy] = {"class_type": original["class_type"], "inputs": inputs, "override_display_id": node_id}
        linked = {name: copied(value) for name, value in ends.items() if _source(value) is not None}
        carried = linked.get("next_iteration_value", carried)
        if "output_value" in linked and (ends.get("accumulate") or place == len(indexes) - 1):
            kept.append(linked["output_value"])
        also += [value for name, value in linked.items() if name.startswith("terminations.")]
    # What is kept may itself be given by the start.
    values = {f"output{i}": value for i, value in enumerate(kept)}
    values |= {f"also{i}": value for i, value in enumerate(also) if _source(value) is not None}
    result = f"{end}.outputs"
    subgraph[result] = {"class_type": "LoopOutputs", "inputs": values}
    return {"expand": subgraph, "result": ([result, 0],)}


class _Loops:
    """The loops of a prompt."""

    def __init__(self, prompt: DynamicPrompt) -> None:
        self._prompt = prompt
        self._before: dict[str, dict[str, None]] = {}
        self._starts: dict[str, str] = {}

    def start_of(self, end: str) -> str:
        """Return the innermost start before an end that no other end before it closes. Errors: NodeError without."""
        if end not in self._starts:
            self._starts[end] = self._start_of(end)
        return self._starts[end]

    def _start_of(self, end: str) -> str:
        before = self._sources(end)
        if (loops := sum(self._is(node_id, START) for node_id in before)) > MOST_LOOPS:
            raise NodeError(f"{loops} loops begin before it; {MOST_LOOPS} may")
        if (ends := sum(self._is(node_id, END) for node_id in before)) > MOST_LOOPS:
            raise NodeError(f"{ends} loops end before it; {MOST_LOOPS} may")
        closed = {self.start_of(node_id) for node_id in before if self._is(node_id, END)}
        starts = [node_id for node_id in before if self._is(node_id, START) and node_id not in closed]
        inner = [one for one in starts if not any(one in self._sources(other) for other in starts)]
        if not inner:
            raise NodeError("no Start Loop is before it")
        return inner[0]

    def between(self, start: str, end: str) -> list[str]:
        """Return the nodes that depend on the start and that the end depends on."""
        before = self._sources(end)
        consumers: dict[str, list[str]] = {}
        for node_id in before:
            for source in self._links(node_id):
                consumers.setdefault(source, []).append(node_id)
        dependent, stack = set(), [start]
        while stack:
            for consumer in consumers.get(stack.pop(), ()):
                if consumer not in dependent:
                    dependent.add(consumer)
                    stack.append(consumer)
        return [node_id for node_id in before if node_id in dependent]

    def _is(self, node_id: str, class_type: str) -> bool:
        return bool(self._prompt.get_node(node_id)["class_type"] == class_type)

    def _sources(self, node_id: str) -> dict[str, None]:
        """Return all nodes that a node depends on, in a fixed order."""
        if node_id not in self._before:
            found: dict[str, None] = {}
            stack = [node_id]
            while stack:
                for source in self._links(stack.pop()):
                    if source not in found:
                        found[source] = None
                        stack.append(source)
            self._before[node_id] = found
        return self._before[node_id]

    def _links(self, node_id: str) -> list[str]:
        inputs = (self._prompt.get_node(node_id).get("inputs") or {}).values()
        return [source for value in inputs if (source := _source(value)) is not None]


def _source(value: Any) -> str | None:
    """Return the node that an input in wire JSON links to; None for a constant."""
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
    return value[0] if is_link else None


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "StartLoop": StartLoop,
    "EndLoop": EndLoop,
    "LoopUnrolled": LoopUnrolled,
    "LoopOutputs": LoopOutputs,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {"StartLoop": "Start Loop", "EndLoop": "End Loop"}
