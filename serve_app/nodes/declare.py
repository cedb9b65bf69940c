"""`node` declares a node once: a typed function, of which it makes the class of ComfyUI's protocol that stands for it.

    @node("ImageRotate", "Rotate Image", category="image/transform", function="rotate")
    def image_rotate(image: IMAGE, rotation: Annotated[str, Choice(["none", "90 degrees", "180 degrees"])]) -> IMAGE:
        \"\"\"Images turned clockwise by quarters.\"\"\"

Inputs and outputs are those whose annotation says so in `Annotated`, as the types of `sockets.py` and the widgets of
`inputs.py` do. A list of one is an input as a list (INPUT_IS_LIST), or an output of a list (OUTPUT_IS_LIST); a default
makes an input optional. The function stays a function, for other nodes and tests to call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Required, TypedDict, TypeVar, Union, Unpack, get_args, get_origin

from serve_app.errors import NodeError
from serve_app.graph.spec import MATCH_TYPE
from serve_app.nested_tensor import NestedTensor
from serve_app.nodes.inputs import InputType
from serve_app.nodes.sockets import Hidden

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class Attributes(TypedDict, total=False):
    """ComfyUI's attributes of a node class, in small letters.

    function: the method that packs call it by. What the signature says need not be given; where it cannot say it, as of
    outputs beside what a node shows, return_types, input_is_list and output_is_list do.
    """

    category: Required[str]
    function: str
    description: str
    search_aliases: tuple[str, ...]
    essentials_category: str
    return_types: tuple[str, ...]
    return_names: tuple[str, ...]
    output_is_list: tuple[bool, ...]
    output_matchtypes: tuple[str | None, ...]
    output_node: bool
    input_is_list: bool
    accept_all_inputs: bool
    skips_blocked: bool
    has_intermediate_output: bool
    deprecated: bool
    experimental: bool
    dev_only: bool


def node(
    class_type: str,
    title: str = "",
    *,
    required: Sequence[str] = (),
    order: Sequence[str] = (),
    inputs: Mapping[str, InputType] | None = None,
    optional_inputs: Mapping[str, InputType] | None = None,
    check_lazy_status: Callable[..., list[str]] | None = None,
    validate_inputs: Callable[..., bool | str] | None = None,
    **attributes: Unpack[Attributes],
) -> Callable[[F], F]:
    """Register a function as a node class of its module, which the registry finds there as it finds a pack's.

    A function that returns one output returns its value; one of more, or whose annotation is no output (a dict with ui,
    result or expand), returns what ComfyUI's classes return.

    required: inputs that a prompt has to give although they have a default, which is for who calls the function.
    order: of inputs that come before others, where it is not that of the parameters. inputs, optional_inputs: those
    that the function takes by **. check_lazy_status, validate_inputs: functions of inputs, as the methods of that name.
    """

    def declare(function: F) -> F:
        signature = _Signature(function)
        sections = signature.sections(required, order, inputs or {}, optional_inputs or {})

        def input_types(cls: type) -> dict[str, Any]:
            return {section: {name: one.declared() for name, one in of.items()} for section, of in sections.items()}

        given: Mapping[str, Any] = {"function": "execute", **signature.attributes(), **attributes}
        members = {name.upper(): value for name, value in given.items()}
        members |= {members["FUNCTION"]: signature.method(), "INPUT_TYPES": classmethod(input_types)}
        hooks = {"check_lazy_status": check_lazy_status, "VALIDATE_INPUTS": validate_inputs}
        members |= {name: staticmethod(hook) for name, hook in hooks.items() if hook is not None}
        members |= {"__doc__": function.__doc__, "__module__": function.__module__}
        _register(function.__globals__, class_type, title, type(class_type, (), members))
        return function

    return declare


def _register(module: dict[str, Any], class_type: str, title: str, node_class: type) -> None:
    """Write a class into its module's tables, which have the names that they have in node packs."""
    module.setdefault("NODE_CLASS_MAPPINGS", {})[class_type] = node_class
    if title:
        module.setdefault("NODE_DISPLAY_NAME_MAPPINGS", {})[class_type] = title


def _first(inputs: Mapping[str, T], order: Sequence[str]) -> dict[str, T]:
    return {**{name: inputs[name] for name in order if name in inputs}, **inputs}


@dataclass(frozen=True, slots=True)
class _Declared:
    """What one annotation declares. is_list: a list of such."""

    type: InputType | Hidden
    is_list: bool = False

    @classmethod
    def by(cls, annotation: Any) -> _Declared | None:
        """Return what `Annotated` has of it, also within a list or beside None; None if it has nothing."""
        origin, members = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return next((cls(said) for said in annotation.__metadata__ if isinstance(said, InputType | Hidden)), None)
        if origin in (Union, UnionType):
            return next((found for found in map(cls.by, members) if found is not None), None)
        if origin is list and (one := cls.by(members[0])) is not None:
            return cls(one.type, is_list=True)
        return None


def _takes_one_part(of: InputType | Hidden) -> bool:
    return isinstance(of, InputType) and of.kind == "LATENT" and not of.joint


def _check_one_part(named: Mapping[str, Any], latents: Sequence[str]) -> None:
    """Errors: NodeError for a LATENT of several parts in one of these inputs."""
    for name in latents:
        given = named.get(name)
        for latent in given if isinstance(given, list) else [given]:
            if isinstance(latent, Mapping) and isinstance(latent.get("samples"), NestedTensor):
                raise NodeError(
                    f"{name} is a latent of several parts, as a video with its sound, and this node takes one part; "
                    "LTXVSeparateAVLatent separates them"
                )


class _Signature:
    """What a function's annotations say of its class."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._signature = inspect.signature(function)
        annotations = inspect.get_annotations(function, eval_str=True)
        returned: Any = annotations.pop("return", None)
        declared = {name: _Declared.by(annotation) for name, annotation in annotations.items()}
        self._inputs = {name: one for name, one in declared.items() if one is not None}
        self._one = _Declared.by(returned) is not None
        slots = get_args(returned) if get_origin(returned) is tuple else (returned,)
        self._outputs = [one for slot in slots if (one := _Declared.by(slot)) is not None]

    def sections(
        self,
        required: Sequence[str],
        order: Sequence[str],
        inputs: Mapping[str, InputType],
        optional_inputs: Mapping[str, InputType],
    ) -> dict[str, dict[str, InputType | Hidden]]:
        """Return the sections of INPUT_TYPES. The arguments are those of `node`."""
        found: dict[str, dict[str, InputType | Hidden]] = {"required": {}, "optional": {}, "hidden": {}}
        for name, declared in self._inputs.items():
            defaulted = self._signature.parameters[name].default is not inspect.Parameter.empty
            section = "optional" if defaulted and name not in required else "required"
            found["hidden" if isinstance(declared.type, Hidden) else section][name] = declared.type
        found["required"] |= inputs
        found["optional"] |= optional_inputs
        ordered = {section: _first(of, order) for section, of in found.items()}
        return {section: of for section, of in ordered.items() if of or section == "required"}

    def attributes(self) -> dict[str, Any]:
        """Return the attributes that follow, by ComfyUI's names in small letters."""
        types = [output.type for output in self._outputs if isinstance(output.type, InputType)]
        found: dict[str, Any] = {"return_types": tuple(str(one.kind) for one in types)}
        if any(output.is_list for output in self._outputs):
            found["output_is_list"] = tuple(output.is_list for output in self._outputs)
        if any(one.kind == MATCH_TYPE for one in types):
            found["output_matchtypes"] = tuple(one.template for one in types)
        if any(declared.is_list for declared in self._inputs.values()):
            found["input_is_list"] = True
        return found

    def method(self) -> Callable[..., Any]:
        """Return the function as a method, which returns a tuple of one output."""
        function, one = self._function, self._one
        latents = [name for name, of in self._inputs.items() if _takes_one_part(of.type)]

        async def awaited(self: object, *values: Any, **named: Any) -> Any:
            _check_one_part(named, latents)
            returned = await function(*values, **named)
            return (returned,) if one else returned

        def called(self: object, *values: Any, **named: Any) -> Any:
            _check_one_part(named, latents)
            returned = function(*values, **named)
            return (returned,) if one else returned

        method = wraps(function)(awaited if inspect.iscoroutinefunction(function) else called)
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        parameters = [own, *self._signature.parameters.values()]
        method.__signature__ = self._signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return method
