"""What a node's parameter says of its input in `Annotated`: the widget or the dynamic input that ComfyUI's page shows.

    width: Annotated[int, Int(512, min=1, max=MAX_RESOLUTION)]

These functions are written in capitals because they stand where types stand. Options keep the order in which they are
given. `sockets.py` has the inputs without a widget, `graph/dynamic.py` what dynamic inputs are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias, TypedDict, Unpack

from serve_app.execution.protocol import FolderChoice
from serve_app.graph.dynamic import AUTOGROW, DYNAMIC_COMBO
from serve_app.graph.spec import MATCH_TYPE

MAX_RESOLUTION = 16384
"""ComfyUI's limit of a side, in pixels."""


@dataclass(frozen=True, eq=False)
class InputType:
    """An input as INPUT_TYPES has it. kind: its type, or a list of choices.

    joint: of LATENT: one of several parts is taken as well.
    """

    kind: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = False

    def declared(self) -> tuple[Any, dict[str, Any]]:
        """Return the entry of INPUT_TYPES, which whoever gets it may change."""
        return deepcopy(self.kind), deepcopy(dict(self.options))

    @property
    def template(self) -> str | None:
        """What its type is shared by, if it is a `MatchType`."""
        template = self.options.get("template")
        return str(template["template_id"]) if self.kind == MATCH_TYPE and template else None


class Options(TypedDict, total=False):
    """What any input may say. lazy: it is evaluated once its node asks. advanced, hidden: as the page shows it."""

    tooltip: str
    display_name: str
    advanced: bool
    hidden: bool
    lazy: bool
    forceInput: bool
    socketless: bool


class NumberOptions(Options, total=False):
    """The range of a number, and how the page shows and changes it."""

    min: float
    max: float
    step: float
    round: float | bool
    display: str
    control_after_generate: bool | str


class TextOptions(Options, total=False):
    """How a text is written on the page. dynamicPrompts: {a|b} stands for one of the two."""

    multiline: bool
    dynamicPrompts: bool
    widgetType: str


class ChoiceOptions(Options, total=False):
    """The choice at first, what may be uploaded to a list of files, and where the page fetches the list."""

    default: Any
    image_upload: bool
    audio_upload: bool
    video_upload: bool
    image_folder: str
    remote: Mapping[str, Any]


def Int(default: int | None = None, **options: Unpack[NumberOptions]) -> InputType:
    """Return a whole number's input."""
    return _widget("INT", default, options)


def Float(default: float | None = None, **options: Unpack[NumberOptions]) -> InputType:
    """Return a number's input."""
    return _widget("FLOAT", default, options)


def Text(default: str | None = None, **options: Unpack[TextOptions]) -> InputType:
    """Return a text's input."""
    return _widget("STRING", default, options)


def Bool(default: bool | None = None, **options: Unpack[Options]) -> InputType:
    """Return a switch's input."""
    return _widget("BOOLEAN", default, options)


def Choice(choices: Iterable[Any], **options: Unpack[ChoiceOptions]) -> InputType:
    """Return one of some values, as V1 classes declare it."""
    return InputType(list(choices), options)


def Combo(choices: Iterable[Any], **options: Unpack[ChoiceOptions]) -> InputType:
    """Return one of some values, as V3 classes declare it."""
    listed = choices if isinstance(choices, FolderChoice) else list(choices)
    return InputType("COMBO", {"multiselect": False, "options": listed, **options})


def File(folder: str, **options: Unpack[ChoiceOptions]) -> InputType:
    """Return one of a folder's files. folder: as `FolderChoice` has it."""
    return InputType(FolderChoice(folder), options)


def Autogrow(
    kind: InputType,
    *,
    name: str,
    prefix: str | None = None,
    names: Sequence[str] | None = None,
    least: int = 1,
    most: int = 10,
) -> InputType:
    """Return an input that grows: PREFIX0 to PREFIX<most − 1>, or these names; at least `least` of them linked.

    kind: one of them; name: what it is called.
    """
    template: dict[str, Any] = {"input": {"required": {name: kind.declared()}}, "min": least}
    template |= {"names": list(names)} if names is not None else {"prefix": prefix, "max": most}
    return InputType(AUTOGROW, {"template": template})


def DynamicCombo(options: Mapping[str, Mapping[str, InputType]], *, optional: bool = False, **more: Any) -> InputType:
    """Return a choice whose options each bring inputs, by name; optional: which may all be missing."""
    section = "optional" if optional else "required"
    brought = {key: {name: one.declared() for name, one in inputs.items()} for key, inputs in options.items()}
    listed = [{"key": key, "inputs": {"required": {}, section: inputs}} for key, inputs in brought.items()]
    return InputType(DYNAMIC_COMBO, {**more, "options": listed})


def MatchType(template: str, *allowed: str, **more: Any) -> InputType:
    """Return an input of a type shared with others of the template; of any type if none is allowed by name."""
    template_of = {"template_id": template, "allowed_types": ",".join(allowed) or "*"}
    return InputType(MATCH_TYPE, {**more, "template": template_of})


def _widget(kind: str, default: Any, options: Mapping[str, Any]) -> InputType:
    return InputType(kind, options if default is None else {"default": default, **options})


Side: TypeAlias = Annotated[int, Int(512, min=1, max=MAX_RESOLUTION, step=1)]
"""The width or height of an image, in pixels."""
Corner: TypeAlias = Annotated[int, Int(0, min=0, max=MAX_RESOLUTION, step=1)]
"""A distance from an image's left or upper edge, in pixels."""
