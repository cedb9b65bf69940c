"""The widgets of a saved node in the page's order, with their saved values.

A saved node lists its widgets' values by position, newer ones by name too. Which widgets there are depends on the
class, and for dynamic inputs on the values themselves. Rules: those of ComfyUI's frontend 1.58.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from serve_app.graph.dynamic import DYNAMIC_COMBO, DYNAMIC_GROUP
from serve_app.graph.saved.page_scripts import script_values
from serve_app.graph.spec import SECTIONS

JsonObject: TypeAlias = Mapping[str, Any]

WIDGETS: Mapping[str, Any] = {
    "INT": 0,
    "FLOAT": 0.0,
    "BOOLEAN": False,
    "STRING": "",
    "TEXTAREA": "",
    "MARKDOWN": "",
    "COMBO": None,
    "COLOR": "#ffffff",
    "COLORS": [],
    "BOUNDING_BOX": {"x": 0, "y": 0, "width": 512, "height": 512},
    "BOUNDING_BOXES": [],
    "CURVE": {"points": [[0.0, 0.0], [1.0, 1.0]], "interpolation": "monotone_cubic"},
    "RANGE": {"min": 0.0, "max": 1.0},
    "PAINTER": "",
    "LOAD_3D": "",
    DYNAMIC_COMBO: None,
    DYNAMIC_GROUP: 0,
}
"""Input types that the page shows as widgets, each with the value of one whose class names no default."""
UNSAVED: Mapping[str, Any] = {"IMAGECOMPARE": {}}
"""Input types whose widgets are sent and never saved, each with what is sent."""
SEEDS = frozenset({"seed", "noise_seed"})
"""Integers that have a control widget even where their class does not ask for one; not those of a dynamic input."""

BUTTONS_3D = {"upload 3d model": "upload3dmodel", "upload extra resources": "uploadExtraResources", "clear": "clear"}
"""The buttons in front of the picture of a 3D model, which the page saves and sends as if they were widgets."""
CUSTOM_COMBO = "CustomCombo"
"""The class whose list the page lets its user write, in widgets of which the class knows nothing."""
OPTION = "option"
"""What the names of those widgets begin with."""


@dataclass(frozen=True, slots=True)
class Widget:
    """One widget. name: None for one of the page's own. forced: it is a socket always, and older pages saved a value.

    sent: its value is an input, and not only a count of rows. saved: the page saves its value.
    """

    name: str | None
    default: Any
    forced: bool = False
    sent: bool = True
    saved: bool = True


def widget_values(node: JsonObject, info: JsonObject) -> dict[str, Any]:
    """Return each widget's value by the name of its input: the saved one, else the class's default.

    info: the class as /object_info describes it.
    """
    saved = _Saved(node)
    widgets = list(_widgets(info["input"], info.get("input_order") or {}, saved))
    if saved.names is None and any(w.forced for w in widgets) and len(saved.values) == len(widgets):
        own = {w.name: v for w, v in zip(widgets, saved.values, strict=True) if w.name is not None and not w.forced}
        return own | script_values(node)
    shown = [widget for widget in widgets if not widget.forced]
    kept = enumerate(w for w in shown if w.saved)
    found = {w.name: saved.at(i, w) for i, w in kept if w.name is not None and w.sent}
    found |= {w.name: w.default for w in shown if w.name is not None and not w.saved}
    if node["type"] == CUSTOM_COMBO:
        options = enumerate(saved.values[2:], 1)
        found |= {f"{OPTION}{number}": value for number, value in options}
    return found | script_values(node)


def widget_names(node: JsonObject, info: JsonObject) -> list[str | None]:
    """Return what each of the values that a node saves by position is for; None for widgets of the page's own."""
    widgets = _widgets(info["input"], info.get("input_order") or {}, _Saved(node))
    return [widget.name for widget in widgets if widget.saved and not widget.forced]


def page_inputs(info: JsonObject) -> list[dict[str, Any]]:
    """Return the inputs of a class's node in the page's order: its sockets, then those of its widgets.

    Without those that dynamic inputs bring, which stand behind them as they are saved.
    """
    sockets, of_widgets = [], []
    orders = info.get("input_order") or {}
    for section in SECTIONS:
        declared = info["input"].get(section) or {}
        for name in orders.get(section) or list(declared):
            kind, options = _declared(declared[name])
            slot = {"name": name, "type": kind}
            if _widget_type(kind, options) not in WIDGETS or options.get("forceInput"):
                sockets.append(slot)
            elif not options.get("socketless"):
                of_widgets.append({**slot, "widget": {"name": name}})
    return [*sockets, *of_widgets]


def place_in_list(inputs: Mapping[str, Any]) -> int:
    """Return which of its options a CUSTOM_COMBO is set to, counted from 0; -1 for none."""
    options = [value for name, value in inputs.items() if name.startswith(OPTION)]
    return options.index(inputs["choice"]) if inputs.get("choice") in options else -1


class _Saved:
    """What a node has saved. names: by the name of its widget, where a pack's script did so.

    The page saves values by name beside those by position (`widgets_values_named`), and reads the latter unless a user
    has set it otherwise, so these are read here.
    """

    def __init__(self, node: JsonObject) -> None:
        values = node.get("widgets_values") or ()
        self.names: JsonObject | None = values if isinstance(values, Mapping) else None
        self.values: Sequence[Any] = list(values.values()) if isinstance(values, Mapping) else values

    def at(self, index: int, widget: Widget) -> Any:
        if self.names is not None:
            return self.names.get(widget.name or "", widget.default)
        return self.values[index] if index < len(self.values) else widget.default


def _widgets(
    sections: JsonObject, orders: Mapping[str, Sequence[str]], saved: _Saved, prefix: str = "", before: int = 0
) -> Iterator[Widget]:
    """Yield the widgets of declared inputs. before: how many the node shows in front of them."""
    count = before
    for section in SECTIONS:
        declared: JsonObject = sections.get(section) or {}
        uploads = False
        for name in orders.get(section) or list(declared):
            options = declared[name][1] if len(declared[name]) > 1 else {}
            for widget in _of_input(f"{prefix}{name}", declared[name], saved, count):
                yield widget
                count += widget.saved and not widget.forced
            uploads = uploads or any(options.get(f"{what}_upload") for what in ("image", "video", "animated_image"))
        if uploads:
            yield Widget(None, None)
            count += 1


def _of_input(name: str, config: Sequence[Any], saved: _Saved, index: int) -> Iterator[Widget]:
    kind, options = _declared(config)
    choices = config[0] if isinstance(config[0], list) else options.get("options") or ()
    kind = _widget_type(kind, options)
    if kind in UNSAVED:
        yield Widget(name, UNSAVED[kind], saved=False)
    if kind not in WIDGETS:
        return
    if (kind, name) == ("LOAD_3D", "image"):
        yield from (Widget(label, value) for label, value in BUTTONS_3D.items())
    if kind == DYNAMIC_COMBO:
        inner = {option["key"]: option.get("inputs") or {} for option in choices}
        widget = Widget(name, next(iter(inner), None))
        yield widget
        chosen = saved.at(index, widget)
        yield from _widgets(inner.get(chosen) or {}, {}, saved, f"{name}.", index + 1)
        return
    if kind == DYNAMIC_GROUP:
        widget = Widget(name, options.get("min") or 0, sent=False)
        yield widget
        count = index + 1
        for row in range(int(saved.at(index, widget) or 0)):
            for one in _widgets(options.get("template") or {}, {}, saved, f"{name}.{row}.", count):
                yield one
                count += one.saved and not one.forced
        return
    default = choices[0] if kind == "COMBO" and choices else WIDGETS[kind]
    forced = bool(options.get("forceInput"))
    widget = Widget(name, options.get("default", default), forced)
    yield widget
    # VideoHelperSuite's choices of a format to write, of which each has widgets of its own.
    of_format = options.get("formats", {}).get(str(saved.at(index, widget)))
    for place, (own, *config_of_own) in enumerate(of_format if isinstance(of_format, list) else (), 1):
        yield from _of_input(own, config_of_own, saved, index + place)
    if not forced and options.get("control_after_generate", kind == "INT" and name in SEEDS):
        # A choice's control has a filter beside it.
        yield from [Widget(None, None)] * (2 if kind == "COMBO" else 1)


def _declared(config: Sequence[Any]) -> tuple[str, JsonObject]:
    """Return the type and the options of a declared input; a list of choices is a COMBO."""
    kind = "COMBO" if isinstance(config[0], list) else str(config[0])
    return kind, config[1] if len(config) > 1 and isinstance(config[1], Mapping) else {}


def _widget_type(kind: str, options: JsonObject) -> str:
    """Return which widget an input has: the one that its class asks for, if the page has it, else that of its type."""
    wanted = str(options.get("widgetType"))
    return wanted if wanted in WIDGETS else kind
