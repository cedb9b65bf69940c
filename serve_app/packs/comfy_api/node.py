"""V3 node classes, and their adaptation onto the V1 protocol, which is the only one the server runs.

Source: the facts of ComfyUI 0.33's `comfy_api/latest/_io.py`; docs.comfy.org, "V3 migration".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from serve_app.errors import NodeError
from serve_app.execution.call import ExecutionBlocker
from serve_app.packs.comfy_api.dynamic_io import MatchType
from serve_app.packs.comfy_api.io import Schema, section_dict


class NodeOutput:
    """What a V3 node returns."""

    def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: str | None = None) -> None:
        self.args, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution

    @property
    def result(self) -> tuple[Any, ...] | None:
        """The values, or None."""
        return self.args or None

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class HiddenHolder:
    """The hidden inputs of one call, by name; None for those that the class does not ask for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> None:
        return None


class _NodeType(type):
    """The type of V3 classes: what runs is a copy of the class, which the node may not write to."""

    def __setattr__(cls, name: str, value: Any) -> None:
        if cls.__dict__.get("locked"):
            raise AttributeError(f"{cls.__name__}.{name} cannot be set while the node runs: V3 nodes hold no state")
        super().__setattr__(name, value)


class ComfyNode(metaclass=_NodeType):
    """The base of V3 classes. All methods are class methods; `hidden` is filled while one runs."""

    hidden: Any = None
    RELATIVE_PYTHON_MODULE: str = "nodes"

    @classmethod
    def define_schema(cls) -> Schema:
        """Return the class's schema."""
        raise NotImplementedError(f"{cls.__name__} has no define_schema")

    @classmethod
    def execute(cls, **inputs: Any) -> Any:
        """Do the node's work and return a NodeOutput, a tuple or a dict."""
        raise NotImplementedError(f"{cls.__name__} has no execute")

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        """Return the class's schema."""
        return cls.define_schema()

    validate_inputs: Any = None
    fingerprint_inputs: Any = None
    check_lazy_status: Any = None


def is_v3(node_class: Any) -> bool:
    """Whether a class is a V3 class."""
    return isinstance(node_class, type) and issubclass(node_class, ComfyNode)


def adapted(node_class: type[ComfyNode], python_module: str) -> type:
    """Return a V1 class that does what the V3 class does. Errors: whatever define_schema raises."""
    schema = node_class.define_schema()
    outputs = schema.outputs
    hidden = {member.name: member.value for member in schema.hidden}

    def input_types(cls: type) -> dict[str, Any]:
        """Ask for the schema anew: choices may have changed."""
        return {**section_dict(node_class.define_schema().inputs), "hidden": dict(hidden)}

    body: dict[str, Any] = {
        "INPUT_TYPES": classmethod(input_types),
        "RETURN_TYPES": tuple(str(one.io_type) for one in outputs),
        "RETURN_NAMES": tuple(one.display_name or str(one.io_type) for one in outputs),
        "OUTPUT_IS_LIST": tuple(bool(one.is_output_list) for one in outputs),
        "OUTPUT_TOOLTIPS": tuple(one.tooltip for one in outputs),
        "OUTPUT_MATCHTYPES": _matchtypes(outputs),
        "FUNCTION": "run",
        "CATEGORY": schema.category,
        "DESCRIPTION": schema.description,
        "OUTPUT_NODE": schema.is_output_node,
        "INPUT_IS_LIST": schema.is_input_list,
        "NOT_IDEMPOTENT": schema.not_idempotent,
        "ACCEPT_ALL_INPUTS": schema.accept_all_inputs,
        "SEARCH_ALIASES": schema.search_aliases,
        "ESSENTIALS_CATEGORY": schema.essentials_category,
        "HAS_INTERMEDIATE_OUTPUT": schema.has_intermediate_output,
        "DEV_ONLY": schema.is_dev_only,
        "DEPRECATED": schema.is_deprecated,
        "EXPERIMENTAL": schema.is_experimental,
        "API_NODE": schema.is_api_node,
        "RELATIVE_PYTHON_MODULE": python_module,
        "run": _method(node_class, "execute", hidden, lambda value: _v1(value, schema, node_class)),
        "V3": node_class,
    }
    for v1, v3 in (("VALIDATE_INPUTS", "validate_inputs"), ("IS_CHANGED", "fingerprint_inputs")):
        if getattr(node_class, v3) is not None:
            body[v1] = staticmethod(_signed(_plain(node_class, v3, hidden), getattr(node_class, v3)))
    if node_class.check_lazy_status is not None:
        body["check_lazy_status"] = _method(node_class, "check_lazy_status", hidden, lambda value: value)
    return type(schema.node_id, (), body)


def _matchtypes(outputs: list[Any]) -> tuple[str | None, ...]:
    found = tuple(one.template.template_id if isinstance(one, MatchType.Output) else None for one in outputs)
    return found if any(found) else ()


def _plain(node_class: type[ComfyNode], name: str, hidden: Mapping[str, str]) -> Callable[..., Any]:
    """Return the class method as a function; hidden inputs go to `hidden` and not to the method."""

    def prepared(inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        holder = HiddenHolder({key: inputs.get(key) for key in hidden})
        clone = _NodeType(node_class.__name__, (node_class,), {"hidden": holder, "locked": True})
        return getattr(clone, name), {key: value for key, value in inputs.items() if key not in hidden}

    if inspect.iscoroutinefunction(getattr(node_class, name)):

        async def awaited(**inputs: Any) -> Any:
            method, given = prepared(inputs)
            return await method(**given)

        return awaited

    def called(**inputs: Any) -> Any:
        method, given = prepared(inputs)
        return method(**given)

    return called


def _method(
    node_class: type[ComfyNode], name: str, hidden: Mapping[str, str], returned: Callable[[Any], Any]
) -> Callable[..., Any]:
    function = _plain(node_class, name, hidden)
    if inspect.iscoroutinefunction(function):

        async def awaited(self: object, **inputs: Any) -> Any:
            return returned(await function(**inputs))

        return awaited

    def called(self: object, **inputs: Any) -> Any:
        return returned(function(**inputs))

    return called


def _signed(function: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function another one's signature: which arguments VALIDATE_INPUTS takes says what it checks."""
    function.__signature__ = inspect.signature(like)  # type: ignore[attr-defined]
    return function


def _v1(value: Any, schema: Schema, node_class: type[ComfyNode]) -> dict[str, Any]:
    """Return what a V3 node returned as a V1 node returns it."""
    if isinstance(value, Mapping):
        found = value.get("result")
        output = NodeOutput(*(found if isinstance(found, tuple | list) else ()), ui=value.get("ui"))
        output.expand = value.get("expand")
        blocker = found if isinstance(found, ExecutionBlocker) else None
    else:
        blocker = value if isinstance(value, ExecutionBlocker) else None
        if not (value is None or blocker is not None or isinstance(value, tuple | NodeOutput)):
            raise NodeError(f"{schema.node_id} returned a {type(value).__name__}; it must be a NodeOutput or a tuple")
        output = value if isinstance(value, NodeOutput) else NodeOutput(*(value if isinstance(value, tuple) else ()))
    if output.block_execution is not None:
        blocker = ExecutionBlocker(output.block_execution)
    if output.expand is not None and not schema.enable_expand:
        raise NodeError(f"{node_class.__name__} returned a subgraph; its schema must say enable_expand=True")
    returned: dict[str, Any] = {}
    if blocker is not None or output.args or not schema.outputs:
        returned["result"] = blocker if blocker is not None else tuple(output.args)
    if output.expand is not None:
        returned["expand"] = output.expand
    if output.ui is not None:
        returned["ui"] = output.ui if isinstance(output.ui, Mapping) else output.ui.as_dict()
    return returned
