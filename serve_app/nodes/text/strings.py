"""The nodes that join, cut, compare and search text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Annotated, TypeAlias

from serve_app.execution.size import allow_text
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Choice, Int, Text
from serve_app.nodes.sockets import BOOLEAN, INT, STRING
from serve_app.nodes.text.expressions import Expression

Flag: TypeAlias = Annotated[bool, Bool(False)]
Line: TypeAlias = Annotated[str, Text(multiline=True)]
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


@node("StringConcatenate", "Concatenate Text", category="text")
def string_concatenate(string_a: Line, string_b: Line, delimiter: Annotated[str, Text("", multiline=False)]) -> STRING:
    """Two texts as one."""
    allow_text(len(string_a) + len(delimiter) + len(string_b))
    return string_a + delimiter + string_b


@node("StringSubstring", "Substring", category="text")
def string_substring(string: Line, start: INT, end: INT) -> STRING:
    """A part of a text. Return characters start to end − 1; a negative index counts from the end."""
    return string[start:end]


@node("StringLength", "Text Length", category="text", return_names=("length",))
def string_length(string: Line) -> INT:
    """How long a text is."""
    return len(string)


@node("CaseConverter", "Convert Text Case", category="text")
def case_converter(string: Line, mode: Annotated[str, Choice(CASES)]) -> STRING:
    """A text in capitals, in small letters, or with capitals in front."""
    return CASES[mode](string)


@node("StringTrim", "Trim Text", category="text")
def string_trim(string: Line, mode: Annotated[str, Choice(TRIMS)]) -> STRING:
    """A text without white space at its ends."""
    return TRIMS[mode](string)


@node("StringReplace", "Replace Text", category="text")
def string_replace(string: Line, find: Line, replace: Line) -> STRING:
    """A text with a word replaced wherever it stands. Replace every occurrence."""
    allow_text(len(string) + string.count(find) * (len(replace) - len(find)))
    return string.replace(find, replace)


@node("StringContains", "Contains Text", category="text", return_names=("contains",))
def string_contains(string: Line, substring: Line, case_sensitive: Annotated[bool, Bool(True)]) -> BOOLEAN:
    """Whether a text holds another."""
    if not case_sensitive:
        string, substring = string.lower(), substring.lower()
    return substring in string


@node("StringCompare", "Compare Text", category="text")
def string_compare(
    string_a: Line,
    string_b: Line,
    mode: Annotated[str, Choice(COMPARISONS)],
    case_sensitive: Annotated[bool, Bool(True)],
) -> BOOLEAN:
    """Whether a text begins with, ends with or equals another."""
    if not case_sensitive:
        string_a, string_b = string_a.lower(), string_b.lower()
    return COMPARISONS[mode](string_a, string_b)


@node("RegexMatch", "Match Text", category="text", return_names=("matches",))
def regex_match(
    string: Line, regex_pattern: Line, case_insensitive: Annotated[bool, Bool(True)], multiline: Flag, dotall: Flag
) -> BOOLEAN:
    """Whether a pattern occurs in a text. Search; a pattern that is none matches nothing."""
    try:
        return Expression(regex_pattern, case_insensitive=case_insensitive, multiline=multiline, dotall=dotall).search(
            string
        )
    except re.error:
        return False


@node(
    "RegexExtract",
    "Extract Text",
    category="text",
    order=("string", "regex_pattern", "mode", "case_insensitive", "multiline", "dotall"),
)
def regex_extract(
    string: Line,
    regex_pattern: Line,
    mode: Annotated[str, Choice(["First Match", "All Matches", "First Group", "All Groups"])],
    group_index: Annotated[int, Int(1, min=0, max=100)],
    case_insensitive: Annotated[bool, Bool(True)],
    multiline: Flag,
    dotall: Flag,
) -> STRING:
    """What a pattern finds in a text.

    Return what is found, a line each, or nothing; a pattern that is none finds nothing.

    All Matches of a pattern with groups are its first groups, as Python's `findall` has them.
    """
    try:
        expression = Expression(regex_pattern, case_insensitive=case_insensitive, multiline=multiline, dotall=dotall)
    except re.error:
        return ""
    if mode == "First Match":
        group = 0
    elif mode == "All Matches":
        group = min(1, expression.groups)
    else:
        group = group_index
    if group > expression.groups or (mode == "All Groups" and not expression.groups):
        return ""
    found = itertools.islice(expression.matches(string), 1 if mode.startswith("First") else None)
    return "\n".join(match.group(group) for match in found)


@node(
    "RegexReplace",
    "Replace Text (Regex)",
    category="text",
    description="Replaces what a regular expression finds in the text.",
)
def regex_replace(
    string: Line,
    regex_pattern: Line,
    replace: Line,
    case_insensitive: Annotated[bool, Bool(True)] = True,
    multiline: Flag = False,
    dotall: Flag = False,
    count: Annotated[int, Int(0, min=0, max=100)] = 0,
) -> STRING:
    """A text with what a pattern finds replaced.

    Replace the first `count` occurrences, 0 for all. Errors: re.error for a pattern that is none.
    """
    expression = Expression(regex_pattern, case_insensitive=case_insensitive, multiline=multiline, dotall=dotall)
    return expression.replaced(string, replace, count)
