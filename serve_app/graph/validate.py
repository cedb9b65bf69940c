"""Validation of a graph before it runs, by specs alone: finds every problem, not only the first.

Problem types and the conversions of constants are ComfyUI's (server and `execution.validate_inputs` of 0.3.64, with
`missing_node_type` and `dependency_cycle` of 0.38). Knows no files: `choices` lists a folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from serve_app.errors import Problem, did_you_mean, short_repr
from serve_app.graph.dynamic import opened, strays
from serve_app.graph.graph import BadLink, Graph, Link, Node
from serve_app.graph.loops import closing
from serve_app.graph.spec import EVERYTHING, MATCH_TYPE, Input, NodeSpec

SOCKET_TYPES = frozenset(
    {"MODEL", "CLIP", "VAE", "CONTROL_NET", "CONDITIONING", "LATENT", "IMAGE", "MASK", "CLIP_VISION"}
    | {"CLIP_VISION_OUTPUT", "STYLE_MODEL", "GLIGEN", "UPSCALE_MODEL", "SAMPLER", "SIGMAS", "GUIDER", "NOISE"}
    | {"AUDIO", "VIDEO"}
)
"""Types no widget can write: an input of one takes a link only. Other types may belong to a pack's own widget."""

CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Suffixes of model files that are read only in folders that list them."""

UPLOADED = {"image": "image", "audio": "audio", "video": "video", "file": "3D model"}
"""The kind of an input's uploaded files, by the prefix of the upload option."""
NO_MODEL = ("", "none")
"""Values of an input for a 3D model's file that mean none."""

SUGGESTION_LIMIT = 50
"""How many unknown words are compared with the known ones; a hostile graph may hold a hundred thousand."""


@dataclass(frozen=True, slots=True)
class Validated:
    """A graph with converted constants, the outputs with a valid ancestry, and all problems."""

    graph: Graph
    outputs: tuple[str, ...]
    problems: tuple[Problem, ...]


def validate(
    graph: Graph,
    specs: Mapping[str, NodeSpec],
    choices: Callable[[str], Sequence[str]],
    targets: Sequence[str] | None = None,
    unsupported: Mapping[str, str] = MappingProxyType({}),
) -> Validated:
    """Check every node, reachable or not, and convert its constants as its class declares them.

    choices: lists the files of a folder for a COMBO with `folder`. targets: run only these output nodes. unsupported:
    reasons for known unsupported classes, by name. Problems of a node carry its id; of the graph (`prompt_no_outputs`,
    `dependency_cycle`) none.
    """
    check = _Check(graph, specs, choices, unsupported)
    nodes = {node.id: check.node(node) for node in graph.nodes.values()}
    for members in cycles(graph):
        chain = " → ".join([*members[:8], *(["…"] if len(members) > 8 else []), members[0]])
        extra = {"node_id": members[0], "cycle_nodes": members}
        check.problems.append(Problem("dependency_cycle", f"nodes need each other in a circle: {chain}", extra=extra))
        check.wrong.update(members)
    known = [n.id for n in nodes.values() if n.class_type in specs and specs[n.class_type].output_node]
    asked = None if targets is None else set(targets)
    wanted = [node_id for node_id in known if asked is None or node_id in asked]
    if not wanted:
        reason = "it has no output node"
        if targets is not None and known:
            reason = f"none of the output nodes {short_repr(known)} is among the targets {short_repr(list(targets))}"
        check.problems.append(Problem("prompt_no_outputs", f"the prompt has no outputs: {reason}"))
    if not any(problem.type == "dependency_cycle" for problem in check.problems):
        ends, misplaced = closing(graph, wanted)
        wanted += ends
        for node_id, reason in misplaced:
            check.add(graph.nodes[node_id], Problem("custom_validation_failed", "the loop cannot run", reason))
    tainted = _downstream(graph, check.wrong)
    outputs = tuple(node_id for node_id in wanted if node_id not in tainted)
    return Validated(Graph(nodes), outputs, tuple(check.problems))


def needs_prevalidation(validated: Validated, specs: Mapping[str, NodeSpec]) -> bool:
    """Whether node classes have validation hooks, which only a worker may run."""
    graph = validated.graph
    needed = (graph.nodes[node_id] for node_id in graph.ancestors(validated.outputs))
    return any(specs[node.class_type].needs_prevalidation for node in needed)


def with_findings(validated: Validated, problems: Sequence[Problem], fingerprints: Mapping[str, Any]) -> Validated:
    """Return it with the findings of hooks: more problems, fewer valid outputs, the nodes' fingerprints."""
    graph = Graph({n.id: replace(n, fingerprint=fingerprints.get(n.id)) for n in validated.graph.nodes.values()})
    tainted = _downstream(graph, {problem.node_id for problem in problems if problem.node_id is not None})
    outputs = tuple(node_id for node_id in validated.outputs if node_id not in tainted)
    return Validated(graph, outputs, (*validated.problems, *problems))


class _Check:
    """The state of one validation."""

    def __init__(
        self,
        graph: Graph,
        specs: Mapping[str, NodeSpec],
        choices: Callable[[str], Sequence[str]],
        unsupported: Mapping[str, str],
    ) -> None:
        self.graph, self.specs, self.unsupported = graph, specs, unsupported
        self.problems: list[Problem] = []
        self.wrong: set[str] = set()
        self._list_folder = choices
        self._folders: dict[str, tuple[str, ...]] = {}
        self._suggestions: dict[Any, str] = {}

    def node(self, node: Node) -> Node:
        spec = self.specs.get(node.class_type)
        if spec is None:
            reason = self.unsupported.get(node.class_type)
            message = unknown_class(
                node.class_type, reason, lambda: self._suggest("class", node.class_type, self.specs)
            )
            self._absent(node, message)
        if spec is not None:
            if spec.lacks:
                more = f" and {len(spec.lacks) - 3} more" if len(spec.lacks) > 3 else ""
                message = (
                    f"node class {short_repr(node.class_type)} cannot run here: it uses {', '.join(spec.lacks[:3])}"
                )
                self._absent(node, f"{message}{more} of ComfyUI; a pool that runs ComfyUI itself would run it")
            for name in () if EVERYTHING in (spec.validator or ()) else strays(spec, node.inputs):
                message = f"{name} is none of the inputs that {name.split('.')[0]} stands for here"
                self.add(node, Problem("invalid_dynamic_input", message, extra={"input_name": name}))
            spec = opened(spec, node.inputs)
        inputs = dict(node.inputs)
        for name, link in node.links():
            self._link(node, name, link, spec.input(name) if spec else None, spec)
        for declared in spec.inputs if spec else ():
            if declared.name not in inputs:
                self._missing(node, declared, spec)
            elif isinstance(inputs[declared.name], BadLink):
                message = (
                    f"{declared.name} is the list {short_repr(inputs[declared.name].value)}; a list must be a link "
                    '[node id, slot], or be wrapped as {"__value__": [...]}'
                )
                self._refuse(node, declared, "bad_linked_input", message, inputs[declared.name].value)
            elif not isinstance(inputs[declared.name], Link):
                inputs[declared.name] = self._constant(node, declared, inputs[declared.name], spec)
        return replace(node, inputs=inputs)

    def _absent(self, node: Node, message: str) -> None:
        extra = {"node_id": node.id, "class_type": node.class_type, "node_title": node.class_type}
        self.add(node, Problem("missing_node_type", message, extra=extra))

    def _missing(self, node: Node, declared: Input, spec: NodeSpec | None) -> None:
        if declared.section != "required" or spec is None:
            return
        undeclared = [name for name in node.inputs if spec.input(name) is None]
        near = self._suggest(node.class_type, declared.name, undeclared[:100]).replace("did you mean", "is that")
        message = f"required input {declared.name!r} is missing{near}"
        problem = Problem("required_input_missing", message, extra={"input_name": declared.name})
        self.add(node, problem)

    def _link(self, node: Node, name: str, link: Link, declared: Input | None, spec: NodeSpec | None) -> None:
        given = [link.node_id, link.slot]
        source = self.graph.nodes.get(link.node_id)
        if source is None:
            message = f"{name} links to node {short_repr(link.node_id)}, which does not exist"
            self._refuse(node, declared or Input(name, "*"), "bad_linked_input", message, given)
            return
        origin = self.specs.get(source.class_type)
        if origin is None:
            return
        if not 0 <= link.slot < len(origin.outputs):
            have = f"has slots 0 to {len(origin.outputs) - 1}" if origin.outputs else "has no outputs"
            message = f"{name} links to slot {short_repr(link.slot)} of {source.class_type} {source.id}, which {have}"
            self._refuse(node, declared or Input(name, "*"), "bad_linked_input", message, given)
        elif spec is not None and spec.validator is not None and "input_types" in spec.validator:
            return
        elif declared is not None and not matches(origin.outputs[link.slot], declared.takes):
            received = origin.outputs[link.slot]
            message = (
                f"{name} takes {declared.takes}, but slot {link.slot} of {source.class_type} {source.id} is {received}"
            )
            extra = {"received_type": received, "linked_node": given}
            self._refuse(node, declared, "return_type_mismatch", message, given, extra=extra)

    def _constant(self, node: Node, declared: Input, value: Any, spec: NodeSpec | None) -> Any:
        """Return the converted constant; an invalid one is returned unchanged.

        Arguments of VALIDATE_INPUTS are not checked here: the class does that itself, in a worker.
        """
        name, options = declared.name, declared.options
        own = spec is not None and spec.validates(name)
        if not own and set(declared.type.split(",")) <= SOCKET_TYPES:
            if value is not None or declared.section == "required":
                message = f"{name} is {short_repr(value)}; {declared.type} comes by a link [node id, slot]"
                self._refuse(node, declared, "invalid_input_type", message, value)
            return value
        try:
            converted = CONVERSIONS.get(declared.type, lambda v: v)(value)
            if isinstance(converted, float) and not math.isfinite(converted):
                raise ValueError("it must be finite")
            if declared.type == "INT" and "max" not in options and converted.bit_length() > 64:
                raise ValueError("it must fit 64 bits")
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            message = f"{name} is {short_repr(value)}, which is no {declared.type}"
            extra = {"exception_message": str(error)[:500]}
            self._refuse(node, declared, "invalid_input_type", message, value, extra=extra)
            return value
        if own:
            return converted
        if (outside := out_of_bounds(declared, converted)) is not None:
            self._refuse(node, declared, *outside, converted)
        if declared.type == "COMBO":
            self._choice(node, declared, converted)
        return converted

    def _choice(self, node: Node, declared: Input, value: Any) -> None:
        allowed = self._allowed(declared)
        if allowed is None:
            return
        several = bool(declared.options.get("multiselect")) and isinstance(value, list)
        for chosen in value if several else [value]:
            if chosen in allowed:
                continue
            if declared.folder == "input":
                self._uploaded(node, declared, chosen, allowed)
                continue
            near = self._suggest(declared.folder or (node.class_type, declared.name), chosen, map(str, allowed))
            details = f"(list of length {len(allowed)})" if len(allowed) > 20 else f"allowed: {_listed(allowed)}"
            unread = "" if declared.folder in (None, "input") else unread_format(chosen, allowed)
            message = f"{declared.name} {short_repr(chosen)} is not in the list{unread or near}"
            extra = {"format_not_read": unread.removeprefix("; ")} if unread else None
            self._refuse(node, declared, "value_not_in_list", message, value, details=details, extra=extra)

    def _uploaded(self, node: Node, declared: Input, chosen: Any, allowed: Sequence[Any]) -> None:
        """Refuse a file that is not in the input folder itself, unless its name has a folder or area."""
        if not isinstance(chosen, str):
            message = f"{declared.name} is {short_repr(chosen)}; it must be the name of an uploaded file"
            self._refuse(node, declared, "exception_during_validation", message, chosen)
        elif not is_path(chosen) and not (declared.options.get("file_upload") and chosen in NO_MODEL):
            self.add(node, not_uploaded(declared, chosen, self._suggest("input", chosen, map(str, allowed))))

    def _allowed(self, declared: Input) -> Sequence[Any] | None:
        if declared.folder is None:
            return declared.choices
        if declared.folder not in self._folders:
            self._folders[declared.folder] = tuple(self._list_folder(declared.folder))
        return self._folders[declared.folder]

    def _suggest(self, list_name: Any, word: Any, allowed: Any) -> str:
        if not isinstance(word, str):
            return ""
        key = (list_name, word)
        if key not in self._suggestions and len(self._suggestions) < SUGGESTION_LIMIT:
            self._suggestions[key] = did_you_mean(word, allowed)
        return self._suggestions.get(key, "")

    def _refuse(
        self,
        node: Node,
        declared: Input,
        type_: str,
        message: str,
        received: Any,
        details: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        few = declared.choices is None or len(declared.choices) <= 20
        kind = list(declared.choices) if declared.choices is not None and few else declared.type
        config = [kind, dict(declared.options)] if few else None
        members = {"input_name": declared.name, "input_config": config, "received_value": _jsonable(received)}
        self.add(node, Problem(type_, message, details, extra=members | dict(extra or {})))

    def add(self, node: Node, problem: Problem) -> None:
        self.problems.append(replace(problem, node_id=node.id, class_type=node.class_type))
        self.wrong.add(node.id)


def unknown_class(class_type: str, reason: str | None, suggest: Callable[[], str]) -> str:
    """Return the message about an unknown class. reason: for a known unsupported one."""
    if reason is not None:
        return f"node class {short_repr(class_type)} is not supported: {reason}"
    return f"no node class {short_repr(class_type)} is installed{suggest()}"


def unread_format(name: Any, listed: Sequence[Any]) -> str:
    """Return "; …" about a model file of an unsupported format, else ""."""
    suffix = PurePosixPath(name).suffix.lower() if isinstance(name, str) else ""
    if suffix not in PICKLES or any(str(other).lower().endswith(PICKLES) for other in listed):
        return ""
    safe = str(PurePosixPath(name).with_suffix(".safetensors"))
    instead = f"there is {safe!r}" if safe in listed else "save its tensors as .safetensors"
    return f"; a {suffix} file is a pickle, which can run code when it is read, so it is not: {instead}"


def out_of_bounds(declared: Input, value: Any) -> tuple[str, str] | None:
    """Return (problem type, message) for a number outside the input's declared bounds, or None."""
    low, high = declared.options.get("min"), declared.options.get("max")
    if not isinstance(value, int | float):
        return None
    if isinstance(low, int | float) and value < low:
        return "value_smaller_than_min", f"{declared.name} is {short_repr(value)}, smaller than the minimum {low}"
    if isinstance(high, int | float) and value > high:
        return "value_bigger_than_max", f"{declared.name} is {short_repr(value)}, bigger than the maximum {high}"
    return None


def matches(output: str, declared: str) -> bool:
    """Whether an output may feed an input: "*" and MATCH_TYPE take all, comma lists need one type in common."""
    kinds = [{part.strip() for part in kind.split(",")} for kind in (output, declared)]
    return output == declared or bool({"*", MATCH_TYPE} & (kinds[0] | kinds[1])) or bool(kinds[0] & kinds[1])


def cycles(graph: Graph) -> Iterator[list[str]]:
    """Yield the ids of each strongly connected set of nodes, in time linear in the links.

    Source: Tarjan 1972, "Depth-first search and linear graph algorithms", with the recursion on a list.
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    open_: dict[str, None] = {}
    for root in graph.nodes:
        if root in index:
            continue
        path: list[tuple[str, Iterator[str]]] = []
        entering: str | None = root
        while path or entering is not None:
            if entering is not None:
                index[entering] = low[entering] = len(index)
                open_[entering] = None
                path.append((entering, _needs(graph, entering)))
                entering = None
            node_id, needs = path[-1]
            for source in needs:
                if source not in index:
                    entering = source
                    break
                if source in open_:
                    low[node_id] = min(low[node_id], index[source])
            if entering is not None:
                continue
            path.pop()
            if path:
                low[path[-1][0]] = min(low[path[-1][0]], low[node_id])
            if low[node_id] == index[node_id]:
                members: list[str] = []
                while not members or members[-1] != node_id:
                    members.append(open_.popitem()[0])
                if len(members) > 1 or node_id in set(_needs(graph, node_id)):
                    yield members


def _needs(graph: Graph, node_id: str) -> Iterator[str]:
    return (link.node_id for _, link in graph.nodes[node_id].links() if link.node_id in graph.nodes)


def _downstream(graph: Graph, wrong: set[str]) -> set[str]:
    consumers: dict[str, list[str]] = {}
    for node in graph.nodes.values():
        for _, link in node.links():
            consumers.setdefault(link.node_id, []).append(node.id)
    tainted, stack = set(wrong), list(wrong)
    while stack:
        fresh = [c for c in consumers.get(stack.pop(), ()) if c not in tainted]
        tainted.update(fresh)
        stack.extend(fresh)
    return tainted


def is_path(value: Any) -> bool:
    """Whether an uploaded file's name has a folder or area, so that `uploads` looks it up."""
    return isinstance(value, str) and ("/" in value or value.endswith("]"))


def not_uploaded(declared: Input, name: str, near: str = "") -> Problem:
    """Return the problem of a missing file, in ComfyUI's words. near: a suggestion.

    In ComfyUI the class looks the file up, so the problem is of the type of a custom validation.
    """
    kind = next((said for option, said in UPLOADED.items() if declared.options.get(f"{option}_upload")), declared.name)
    message = f"{declared.name} {short_repr(name)} has not been uploaded{near}"
    details = f"{declared.name} - Invalid {kind} file: {name}"
    return Problem("custom_validation_failed", message, details, extra={"input_name": declared.name})


def _listed(allowed: Sequence[Any]) -> str:
    return ", ".join(map(str, allowed)) or "none, the list is empty"


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, bool | str) or (isinstance(value, int) and value.bit_length() <= 64):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else short_repr(value)
