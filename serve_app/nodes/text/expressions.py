"""Regular expressions that clients send, matched in time linear in the text (RE2), so that none can stop a replica.

Patterns are written as Python's `re` has them. What cannot be matched so is refused: look-around, back-references,
possessive and atomic groups, comments and verbose patterns, more than 1000 repetitions. Without MULTILINE, `$` is the
text's end only, and `\\b` knows ASCII letters only.
Source: Cox, "Regular Expression Matching: the Virtual Machine Approach"; github.com/google/re2/wiki/Syntax.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import re2

from serve_app.errors import NodeError, short_repr
from serve_app.execution.executing import executing
from serve_app.execution.size import allow_text

PATTERN_LIMIT = 10_000
"""How many characters a pattern may have: time grows with its length times the text's."""
SEARCH_S = 20.0
"""How long all matches of one pattern may take to find. One alone is linear, but where each has to look far, all are
the square of it."""

_UNSUPPORTED = (
    "look-around, back-references, possessive and atomic groups, comments and more than 1000 repetitions are not "
    "allowed, so that every pattern is matched in linear time"
)
_WORD, _SPACE = r"\p{L}\p{N}_", r"\s\x0b\x1c-\x1f\x{85}\p{Z}"
_OUTSIDE = {
    "w": f"[{_WORD}]",
    "W": f"[^{_WORD}]",
    "d": r"\p{Nd}",
    "D": r"\P{Nd}",
    "s": f"[{_SPACE}]",
    "S": f"[^{_SPACE}]",
    "Z": r"\z",
}
_IN_CLASS = {"w": _WORD, "d": r"\p{Nd}", "D": r"\P{Nd}", "s": _SPACE}
_CODE = re.compile(r"u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})")
_TEMPLATE = re.compile(r"\\(?:g<(\w+)>|(0[0-7]{0,2}|[0-3][0-7]{2})|([1-9][0-9]?)|(.))", re.DOTALL)
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}


class Match:
    """One place where an expression matches."""

    def __init__(self, encoded: bytes, found: Any) -> None:
        self._encoded = encoded
        self._found = found

    @property
    def span(self) -> tuple[int, int]:
        """From where to where, in bytes of UTF-8."""
        return (self._found.start(), self._found.end())

    def group(self, index: int) -> str:
        """Return what a group holds, 0 for the whole; nothing for one that is not part of the match."""
        start, end = self._found.span(index)
        return "" if start < 0 else self._encoded[start:end].decode()


class Expression:
    """A compiled pattern. Errors: re.error for one that is none, NodeError for one that cannot be matched so."""

    def __init__(self, pattern: str, *, case_insensitive: bool, multiline: bool, dotall: bool) -> None:
        if len(pattern) > PATTERN_LIMIT:
            raise NodeError(f"the pattern has {len(pattern)} characters; {PATTERN_LIMIT} are allowed")
        letters = ("i" * case_insensitive) + ("m" * multiline) + ("s" * dotall)
        flags = f"(?{letters})" if letters else ""
        options = re2.Options()
        options.log_errors = False
        try:
            self._compiled = re2.compile(flags + _translated(pattern), options)
        except re2.error as error:
            # What is no pattern for Python either is its error, as the nodes have always had it.
            with contextlib.suppress(RecursionError, OverflowError):
                re.compile(pattern)
            reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else error
            raise NodeError(f"the pattern {short_repr(pattern)} cannot be used ({reason}): {_UNSUPPORTED}") from error

    @property
    def groups(self) -> int:
        """How many groups it has."""
        return int(self._compiled.groups)

    def search(self, text: str) -> bool:
        """Whether it occurs in the text."""
        return self._compiled.search(text) is not None

    def matches(self, text: str) -> Iterator[Match]:
        """Yield every match that begins where the last one has ended, or later.

        Errors: NodeError when they take longer than SEARCH_S.
        """
        call = executing()
        began_s = time.monotonic()
        encoded = text.encode()
        start = 0
        while start <= len(encoded) and (found := self._compiled.search(encoded, start)) is not None:
            yield Match(encoded, found)
            start = found.end()
            if found.start() == start:
                # On to the next character, over the bytes that continue this one.
                start += 1
                while start < len(encoded) and encoded[start] & 0xC0 == 0x80:
                    start += 1
            if time.monotonic() - began_s > SEARCH_S or (call is not None and call.stopped.is_set()):
                raise NodeError(f"finding what the pattern matches takes longer than {SEARCH_S:g} s")

    def replaced(self, text: str, template: str, count: int = 0) -> str:
        """Return the text with the first `count` matches as the template has it, such as `<\\1>`.

        count: 0 is all, less is none. Errors: re.error and IndexError for a wrong template, as Python's; NodeError.
        """
        written = self._template(template)
        encoded = text.encode()
        pieces: list[str] = []
        at = length = 0
        for match in itertools.islice(self.matches(text), max(0, count) if count else None):
            start, end = match.span
            pieces += [encoded[at:start].decode(), written(match)]
            length += len(pieces[-2]) + len(pieces[-1])
            allow_text(length)
            at = end
        return "".join([*pieces, encoded[at:].decode()])

    def _template(self, template: str) -> Callable[[Match], str]:
        names = {index: name for name, index in self._compiled.groupindex.items()}
        groups = (f"(?P<{names[i]}>)" if i in names else "()" for i in range(1, self.groups + 1))
        re.sub("".join(groups), template, "")
        pieces: list[str | int] = []
        at = 0
        for found in _TEMPLATE.finditer(template):
            pieces.append(template[at : found.start()])
            at = found.end()
            name, octal, number, other = found.groups()
            if name is not None:
                pieces.append(int(name) if name.isdecimal() else int(self._compiled.groupindex[name]))
            elif octal is not None:
                pieces.append(chr(int(octal, 8)))
            elif number is not None:
                pieces.append(int(number))
            else:
                pieces.append(_LETTERS.get(other, f"\\{other}"))
        pieces.append(template[at:])
        return lambda match: "".join(p if isinstance(p, str) else match.group(p) for p in pieces)


def _translated(pattern: str) -> str:
    """Return the pattern with the escapes that RE2 lacks, or takes for ASCII only, in its own words."""
    out: list[str] = []
    at, in_class = 0, False
    while at < len(pattern):
        char = pattern[at]
        if char != "\\" or at + 1 == len(pattern):
            if char == "[" and in_class:
                out.append("\\")  # a letter to Python; to RE2 the beginning of [:alpha:]
            elif char == "[":
                in_class = True
                # Directly behind the bracket, a closing one is a letter.
                ahead = re.compile(r"\[\^?\]?").match(pattern, at)
                char = ahead[0] if ahead else char
            elif char == "]":
                in_class = False
            out.append(char)
            at += len(char)
            continue
        escaped = pattern[at + 1]
        if code := _CODE.match(pattern, at + 1):
            out.append(f"\\x{{{code[1] or code[2]}}}")
            at = code.end()
            continue
        out.append((_IN_CLASS if in_class else _OUTSIDE).get(escaped, f"\\{escaped}"))
        at += 2
    return "".join(out)
