"""The nodes that join, cut, compare and search text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from serve_app.execution.size import allow_text
from serve_app.nodes.text.expressions import Expression

TEXT = ("STRING", {"multiline": True})
CASES: Mapping[str, Callable[[str], str]] = {
    "UPPERCASE": str.upper,
    "lowercase": str.lower,
    "Capitalize": str.capitalize,
    "Title Case": str.title,
}
TRIMS: Mapping[str, Callable[[str], str]] = {"Both": str.strip, "Left": str.lstrip, "Right": str.rstrip}
COMPARISONS: Mapping[str, Callable[[str, str], bool]] = {
    "Starts With": str.startswith,
    "Ends With": str.endswith,
    "Equal": str.__eq__,
}
FLAGS = {
    "case_insensitive": ("BOOLEAN", {"default": True}),
    "multiline": ("BOOLEAN", {"default": False}),
    "dotall": ("BOOLEAN", {"default": False}),
}


class StringConcatenate:
    """Two texts as one."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        delimiter = ("STRING", {"default": "", "multiline": False})
        return {"required": {"string_a": TEXT, "string_b": TEXT, "delimiter": delimiter}}

    def execute(self, string_a: str, string_b: str, delimiter: str) -> tuple[str]:
        """Join."""
        allow_text(len(string_a) + len(delimiter) + len(string_b))
        return (string_a + delimiter + string_b,)


class StringSubstring:
    """A part of a text."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"string": TEXT, "start": ("INT", {}), "end": ("INT", {})}}

    def execute(self, string: str, start: int, end: int) -> tuple[str]:
        """Return characters start to end − 1; a negative index counts from the end."""
        return (string[start:end],)


class StringLength:
    """How long a text is."""

    RETURN_TYPES = ("INT",)
    RETURN_NAMES = ("length",)
    FUNCTION = "execute"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"string": TEXT}}

    def execute(self, string: str) -> tuple[int]:
        """Count characters."""
        return (len(string),)


class CaseConverter:
    """A text in capitals, in small letters, or with capitals in front."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"string": TEXT, "mode": (list(CASES),)}}

    def execute(self, string: str, mode: str) -> tuple[str]:
        """Convert."""
        return (CASES[mode](string),)


class StringTrim:
    """A text without white space at its ends."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"string": TEXT, "mode": (list(TRIMS),)}}

    def execute(self, string: str, mode: str) -> tuple[str]:
        """Trim."""
        return (TRIMS[mode](string),)


class StringReplace:
    """A text with a word replaced wherever it stands."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"string": TEXT, "find": TEXT, "replace": TEXT}}

    def execute(self, string: str, find: str, replace: str) -> tuple[str]:
        """Replace every occurrence."""
        allow_text(len(string) + string.count(find) * (len(replace) - len(find)))
        return (string.replace(find, replace),)


class StringContains:
    """Whether a text holds another."""

    RETURN_TYPES = ("BOOLEAN",)
    RETURN_NAMES = ("contains",)
    FUNCTION = "execute"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"string": TEXT, "substring": TEXT, "case_sensitive": ("BOOLEAN", {"default": True})}}

    def execute(self, string: str, substring: str, case_sensitive: bool) -> tuple[bool]:
        """Look."""
        if not case_sensitive:
            string, substring = string.lower(), substring.lower()
        return (substring in string,)


class StringCompare:
    """Whether a text begins with, ends with or equals another."""

    RETURN_TYPES = ("BOOLEAN",)
    FUNCTION = "execute"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "string_a": TEXT,
                "string_b": TEXT,
                "mode": (list(COMPARISONS),),
                "case_sensitive": ("BOOLEAN", {"default": True}),
            }
        }

    def execute(self, string_a: str, string_b: str, mode: str, case_sensitive: bool) -> tuple[bool]:
        """Compare."""
        if not case_sensitive:
            string_a, string_b = string_a.lower(), string_b.lower()
        return (COMPARISONS[mode](string_a, string_b),)


class RegexMatch:
    """Whether a pattern occurs in a text."""

    RETURN_TYPES = ("BOOLEAN",)
    RETURN_NAMES = ("matches",)
    FUNCTION = "execute"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"string": TEXT, "regex_pattern": TEXT, **FLAGS}}

    def execute(self, string: str, regex_pattern: str, **flags: bool) -> tuple[bool]:
        """Search; a pattern that is none matches nothing."""
        try:
            return (Expression(regex_pattern, **flags).search(string),)
        except re.error:
            return (False,)


class RegexExtract:
    """What a pattern finds in a text."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "string": TEXT,
                "regex_pattern": TEXT,
                "mode": (["First Match", "All Matches", "First Group", "All Groups"],),
                **FLAGS,
                "group_index": ("INT", {"default": 1, "min": 0, "max": 100}),
            }
        }

    def execute(self, string: str, regex_pattern: str, mode: str, group_index: int, **flags: bool) -> tuple[str]:
        """Return what is found, a line each, or nothing; a pattern that is none finds nothing.

        All Matches of a pattern with groups are its first groups, as Python's `findall` has them.
        """
        try:
            expression = Expression(regex_pattern, **flags)
        except re.error:
            return ("",)
        if mode == "First Match":
            group = 0
        elif mode == "All Matches":
            group = min(1, expression.groups)
        else:
            group = group_index
        if group > expression.groups or (mode == "All Groups" and not expression.groups):
            return ("",)
        found = itertools.islice(expression.matches(string), 1 if mode.startswith("First") else None)
        return ("\n".join(match.group(group) for match in found),)


class RegexReplace:
    """A text with what a pattern finds replaced."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = "text"
    DESCRIPTION = "Replaces what a regular expression finds in the text."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"string": TEXT, "regex_pattern": TEXT, "replace": TEXT},
            "optional": {**FLAGS, "count": ("INT", {"default": 0, "min": 0, "max": 100})},
        }

    def execute(
        self,
        string: str,
        regex_pattern: str,
        replace: str,
        case_insensitive: bool = True,
        multiline: bool = False,
        dotall: bool = False,
        count: int = 0,
    ) -> tuple[str]:
        """Replace the first `count` occurrences, 0 for all. Errors: re.error for a pattern that is none."""
        expression = Expression(regex_pattern, case_insensitive=case_insensitive, multiline=multiline, dotall=dotall)
        return (expression.replaced(string, replace, count),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "StringConcatenate": StringConcatenate,
    "StringSubstring": StringSubstring,
    "StringLength": StringLength,
    "CaseConverter": CaseConverter,
    "StringTrim": StringTrim,
    "StringReplace": StringReplace,
    "StringContains": StringContains,
    "StringCompare": StringCompare,
    "RegexMatch": RegexMatch,
    "RegexExtract": RegexExtract,
    "RegexReplace": RegexReplace,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "StringConcatenate": "Concatenate Text",
    "StringSubstring": "Substring",
    "StringLength": "Text Length",
    "CaseConverter": "Convert Text Case",
    "StringTrim": "Trim Text",
    "StringReplace": "Replace Text",
    "StringContains": "Contains Text",
    "StringCompare": "Compare Text",
    "RegexMatch": "Match Text",
    "RegexExtract": "Extract Text",
    "RegexReplace": "Replace Text (Regex)",
}
