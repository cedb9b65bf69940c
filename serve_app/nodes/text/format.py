"""The nodes that write text from values and JSON, and save it."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from serve_app.errors import NodeError, short_repr
from serve_app.execution.size import allow_text
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Autogrow, Combo, InputType, Int, Text
from serve_app.nodes.sockets import ARRAY, DICT, STORE, STRING

CATEGORY = "text"
Indent: TypeAlias = Annotated[int, Int(2, min=0, max=8)]
_NUMBER = re.compile(r"\d+")


class _Format(string.Formatter):
    """Python's format strings without what a client must not reach: private attributes, and texts of any length.

    For one text, whose parts together are bounded.
    """

    def __init__(self) -> None:
        self._written = 0

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if re.search(r"(^|[.\[])_", field_name):
            raise NodeError(f"{{{field_name}}} names what is private")
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value: Any, format_spec: str) -> str:
        allow_text(self._written + sum(int(number[:12]) for number in _NUMBER.findall(format_spec)))
        written = str(super().format_field(value, format_spec))
        self._written += len(written)
        allow_text(self._written)
        return written


@node(
    "StringFormat",
    "Format Text",
    category=CATEGORY,
    description="Writes values into a text, as Python's str.format does.",
)
def string_format(
    values: Annotated[Mapping[str, Any], Autogrow(InputType("*"), name="value", names=string.ascii_lowercase, least=0)],
    f_string: Annotated[str, Text("{a}", multiline=True)],
) -> STRING:
    """A text with values in the places of their letters.

    Errors: NodeError for a text that is no format string, or that names what is not linked.
    """
    try:
        return _Format().vformat(f_string, (), values)
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        have = ", ".join(values) or "none"
        raise NodeError(
            f"{short_repr(f_string)} cannot be filled in: {error!r}; there are the values {have}"
        ) from error


@node("JsonExtractString", "Extract Text from JSON", category=CATEGORY)
def json_extract_string(
    json_string: Annotated[str, Text(multiline=True)], key: Annotated[str, Text(multiline=False)]
) -> STRING:
    """One member of a JSON object as text.

    Return the member as Python writes it; nothing for null, for none of that name, and for what is no JSON.
    """
    try:
        found = json.loads(json_string)
    except (ValueError, RecursionError):
        return ""
    value = found.get(key) if isinstance(found, dict) else None
    return "" if value is None else str(value)


@node("ConvertDictionaryToString", "Convert Dictionary to String", category=CATEGORY, required=("indent",))
def convert_dictionary_to_string(dictionary: DICT, indent: Indent = 2) -> STRING:
    """An object as JSON. Write it, on one line without an indent. Errors: NodeError for what JSON cannot write."""
    return _written(dictionary, indent)


@node("ConvertArrayToString", "Convert Array to String", category=CATEGORY, required=("indent",))
def convert_array_to_string(array: ARRAY, indent: Indent = 2) -> STRING:
    """A list as JSON. Write it, on one line without an indent. Errors: NodeError for what JSON cannot write."""
    return _written(array, indent)


@node(
    "SaveText",
    "Save Text",
    category=CATEGORY,
    function="save",
    return_types=("STRING",),
    output_is_list=(True,),
    return_names=("text",),
    skips_blocked=True,
    output_node=True,
    description="Saves the text to the output folder.",
)
async def save_text(
    text: list[Annotated[str, Text(forceInput=True, multiline=False)]],
    filename_prefix: list[Annotated[str, Text("ComfyUI", multiline=False)]],
    format: list[Annotated[str, Combo(["txt", "csv", "md", "json"], default="txt")]],
    store: list[STORE],
) -> dict[str, Any]:
    """Texts to files.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.

    Store them and show both; what is JSON is laid out as such in a .json file.
    """
    contents: dict[str, list[bytes]] = {}
    for index, one in enumerate(text):
        prefix = filename_prefix[min(index, len(filename_prefix) - 1)]
        contents.setdefault(prefix, []).append((_laid_out(one) if format[0] == "json" else one).encode())
    files: list[dict[str, Any]] = []
    for prefix, written in contents.items():
        files += await store[0].save("output", prefix, f".{format[0]}", written, width=1, height=1, mark="")
    return {"ui": {"text": list(text), "files": files}, "result": (text,)}


def _laid_out(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _written(value: Any, indent: int) -> str:
    try:
        if indent > 1:
            by_one = json.dumps(value, ensure_ascii=False, indent=1)
            indents = sum(len(row) - len(row.lstrip(" ")) for row in by_one.split("\n"))
            allow_text(max(indent, len(by_one) + indents * (indent - 1)))
        return json.dumps(value, ensure_ascii=False, indent=indent or None)
    except (TypeError, ValueError, RecursionError) as error:
        raise NodeError(f"a {type(value).__name__} cannot be written as JSON: {error}") from error
