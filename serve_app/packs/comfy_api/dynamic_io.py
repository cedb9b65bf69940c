"""Dynamic inputs of V3 nodes, and inputs of more than one type, with their wire form.

Source: the facts of ComfyUI 0.33's `comfy_api/latest/_io.py`; DynamicGroup those of ComfyUI 0.46.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from serve_app.graph.dynamic import AUTOGROW, DYNAMIC_COMBO, DYNAMIC_GROUP, DYNAMIC_SLOT, ROWS_LIMIT
from serve_app.graph.spec import MATCH_TYPE
from serve_app.packs.comfy_api.io import ComfyType, WidgetInput, section_dict
from serve_app.packs.comfy_api.io import Input as AnyInput
from serve_app.packs.comfy_api.io import Output as AnyOutput


class DynamicInput(AnyInput):
    """An input that stands for others."""


class DynamicOutput(AnyOutput):
    """An output that stands for others."""


class MultiType(ComfyType):
    """Inputs that take more than one type."""

    io_type = "COMFY_MULTITYPED_V3"

    class Input(AnyInput):
        """id: a name, or an input whose widget is offered as well. types: what a link may bring."""

        io_type = "COMFY_MULTITYPED_V3"

        def __init__(self, id: str | AnyInput, types: Sequence[Any], *given: Any, **options: Any) -> None:
            base = copy.copy(id) if isinstance(id, AnyInput) else None
            super().__init__(id if isinstance(id, str) else id.id, *given, **options)
            kinds = [kind.io_type for kind in types]
            if base is not None:
                self.optional = self.optional or base.optional
                if isinstance(base, WidgetInput):
                    base.options = {**base.options, "widget_type": base.get_io_type()}
                shown = ("display_name", "tooltip", "lazy")
                own = {name: v for name, v in self.options.items() if name not in shown or name not in base.options}
                # The input's own options take precedence over these, as in ComfyUI.
                self.options, self.extra_dict = {**base.options, **own}, {**base.extra_dict, **self.extra_dict}
                self._base: AnyInput | None = base
                kinds.insert(0, base.get_io_type())
            else:
                self._base = None
            self._kinds = ",".join(dict.fromkeys(kinds))

        def get_io_type(self) -> str:
            """Return all types, with commas between."""
            return self._kinds

        def as_dict(self) -> dict[str, Any]:
            """Return the options on the wire."""
            return (self._base.as_dict() if self._base is not None else {}) | super().as_dict()


class MatchType(ComfyType):
    """Inputs and outputs that all have one type, whichever of the allowed ones it is."""

    io_type = MATCH_TYPE

    class Template:
        """What its inputs and outputs share. allowed_types: one type or several."""

        def __init__(self, template_id: str, allowed_types: Any = None) -> None:
            given = allowed_types if allowed_types is not None else ComfyType
            self.template_id = template_id
            self.allowed_types = list(given) if isinstance(given, list | tuple) else [given]

        def as_dict(self) -> dict[str, Any]:
            """Return it on the wire."""
            return {"template_id": self.template_id, "allowed_types": ",".join(k.io_type for k in self.allowed_types)}

    class Input(AnyInput):
        """An input of the template's type."""

        io_type = MATCH_TYPE

        def __init__(self, id: str, template: MatchType.Template, *given: Any, **options: Any) -> None:
            super().__init__(id, *given, **options)
            self.template = template

        def as_dict(self) -> dict[str, Any]:
            """Return the options on the wire."""
            return {**super().as_dict(), "template": self.template.as_dict()}

    class Output(AnyOutput):
        """An output of the template's type."""

        io_type = MATCH_TYPE

        def __init__(self, template: MatchType.Template, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            self.template = template
            self.display_name = self.display_name or "MATCHTYPE"


class Autogrow(ComfyType):
    """As many inputs of one kind as are linked."""

    io_type = AUTOGROW

    class _Template:
        def __init__(self, input: AnyInput, **options: Any) -> None:
            if isinstance(input, DynamicInput):
                raise TypeError(f"the template of an Autogrow is {input.id!r}, which is dynamic itself")
            self.input, self.options = copy.copy(input), options
            if isinstance(input, WidgetInput):
                self.input.options = {**input.options, "force_input": True}

        def as_dict(self) -> dict[str, Any]:
            """Return it on the wire."""
            return {"input": section_dict([self.input]), **self.options}

    class TemplatePrefix(_Template):
        """Inputs PREFIX0, PREFIX1, …"""

        def __init__(self, input: AnyInput, prefix: str, min: int = 1, max: int = 10) -> None:
            super().__init__(input, prefix=prefix, min=min, max=max)

    class TemplateNames(_Template):
        """Inputs of these names."""

        def __init__(self, input: AnyInput, names: list[str], min: int = 1) -> None:
            super().__init__(input, names=names[:100], min=min)

    class Input(DynamicInput):
        """The input that grows."""

        io_type = AUTOGROW

        def __init__(self, id: str, template: Autogrow._Template, *given: Any, **options: Any) -> None:
            super().__init__(id, *given, **options)
            self.template = template

        def as_dict(self) -> dict[str, Any]:
            """Return the options on the wire."""
            return {**super().as_dict(), "template": self.template.as_dict()}


class DynamicCombo(ComfyType):
    """A choice each of whose options brings inputs of its own."""

    io_type = DYNAMIC_COMBO

    class Option:
        """One option."""

        def __init__(self, key: str, inputs: list[AnyInput]) -> None:
            self.key, self.inputs = key, inputs

        def as_dict(self) -> dict[str, Any]:
            """Return it on the wire."""
            return {"key": self.key, "inputs": section_dict(self.inputs)}

    class Input(DynamicInput):
        """The choice."""

        io_type = DYNAMIC_COMBO

        def __init__(self, id: str, options: list[DynamicCombo.Option], *given: Any, **more: Any) -> None:
            super().__init__(id, *given, **more)
            self.choices = options

        def get_all(self) -> list[AnyInput]:
            """Return it and the inputs of all options."""
            return [self, *(one for option in self.choices for one in option.inputs)]

        def as_dict(self) -> dict[str, Any]:
            """Return the options on the wire."""
            return {**super().as_dict(), "options": [option.as_dict() for option in self.choices]}


class DynamicSlot(ComfyType):
    """A socket that brings more inputs once it is linked."""

    io_type = DYNAMIC_SLOT

    class Input(DynamicInput):
        """slot: the socket; always optional."""

        io_type = DYNAMIC_SLOT

        def __init__(self, slot: AnyInput, inputs: list[AnyInput], *given: Any, **options: Any) -> None:
            own = {name: slot.options[name] for name in ("display_name", "tooltip", "lazy") if name in slot.options}
            super().__init__(slot.id, *given, **(options | own))
            self.optional, self.extra_dict = True, dict(slot.extra_dict)
            self.slot, self.inputs = slot, inputs
            if isinstance(slot, WidgetInput):
                self.options["force_input"] = True

        def as_dict(self) -> dict[str, Any]:
            """Return the options on the wire."""
            return {**super().as_dict(), "slotType": self.slot.get_io_type(), "inputs": section_dict(self.inputs)}


class DynamicGroup(ComfyType):
    """Rows of the same inputs."""

    io_type = DYNAMIC_GROUP

    class Input(DynamicInput):
        """template: the inputs of a row."""

        io_type = DYNAMIC_GROUP

        def __init__(
            self,
            id: str,
            template: list[AnyInput],
            *given: Any,
            min: int = 0,
            max: int = ROWS_LIMIT,
            group_name: str | None = None,
            **options: Any,
        ) -> None:
            super().__init__(id, *given, min=min, max=max, group_name=group_name, **options)
            self.template = template

        def as_dict(self) -> dict[str, Any]:
            """Return the options on the wire."""
            rows = {name: members for name, members in section_dict(self.template).items() if members}
            return {**super().as_dict(), "template": rows}
