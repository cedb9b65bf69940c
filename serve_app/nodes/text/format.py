"""The nodes that write text from values and JSON, and save it."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.errors import NodeError, shown
from serve_app.execution.runtime import Files
from serve_app.execution.size import allow_text
from serve_app.nodes.dynamic_inputs import autogrow, combo

CATEGORY = "text"
INDENT = ("INT", {"default": 2, "min": 0, "max": 8})
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


class StringFormat:
    """A text with values in the places of their letters."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = CATEGORY
    DESCRIPTION = "Writes values into a text, as Python's str.format does."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        values = autogrow(("*", {}), name="value", names=string.ascii_lowercase, least=0)
        return {"required": {"values": values, "f_string": ("STRING", {"default": "{a}", "multiline": True})}}

    def execute(self, values: Mapping[str, Any], f_string: str) -> tuple[str]:
        """Format. Errors: NodeError for a text that is no format string, or that names what is not linked."""
        try:
            return (_Format().vformat(f_string, (), values),)
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
            have = ", ".join(values) or "none"
            raise NodeError(f"{shown(f_string)} cannot be filled in: {error!r}; there are the values {have}") from error


class JsonExtractString:
    """One member of a JSON object as text."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"json_string": ("STRING", {"multiline": True}), "key": ("STRING", {"multiline": False})}}

    def execute(self, json_string: str, key: str) -> tuple[str]:
        """Return the member as Python writes it; nothing for null, for none of that name, and for what is no JSON."""
        try:
            found = json.loads(json_string)
        except (ValueError, RecursionError):
            return ("",)
        value = found.get(key) if isinstance(found, dict) else None
        return ("" if value is None else str(value),)


class ConvertDictionaryToString:
    """An object as JSON."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"dictionary": ("DICT", {}), "indent": INDENT}}

    def execute(self, dictionary: Any, indent: int = 2) -> tuple[str]:
        """Write it, on one line without an indent. Errors: NodeError for what JSON cannot write."""
        return (_written(dictionary, indent),)


class ConvertArrayToString:
    """A list as JSON."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"array": ("ARRAY", {}), "indent": INDENT}}

    def execute(self, array: Any, indent: int = 2) -> tuple[str]:
        """Write it, on one line without an indent. Errors: NodeError for what JSON cannot write."""
        return (_written(array, indent),)


class SaveText:
    """Texts to files.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.
    """

    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    OUTPUT_IS_LIST = (True,)
    INPUT_IS_LIST = True
    SKIPS_BLOCKED = True
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY
    DESCRIPTION = "Saves the text to the output folder."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "text": ("STRING", {"forceInput": True, "multiline": False}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
                "format": combo(["txt", "csv", "md", "json"], default="txt"),
            },
            "hidden": {"store": "STORE"},
        }

    async def save(
        self, text: list[str], filename_prefix: list[str], format: list[str], store: list[Files]
    ) -> dict[str, Any]:
        """Store them and show both; what is JSON is laid out as such in a .json file."""
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
        return json.dumps(value, ensure_ascii=False, indent=indent or None)
    except (TypeError, ValueError, RecursionError) as error:
        raise NodeError(f"a {type(value).__name__} cannot be written as JSON: {error}") from error


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "StringFormat": StringFormat,
    "JsonExtractString": JsonExtractString,
    "ConvertDictionaryToString": ConvertDictionaryToString,
    "ConvertArrayToString": ConvertArrayToString,
    "SaveText": SaveText,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "StringFormat": "Format Text",
    "JsonExtractString": "Extract Text from JSON",
    "ConvertDictionaryToString": "Convert Dictionary to String",
    "ConvertArrayToString": "Convert Array to String",
    "SaveText": "Save Text",
}
