"""Which lines of the server's log somebody wants to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from serve_app import log
from serve_app.errors import InvalidSubmissionError, short_repr

LEVELS = get_args(log.Level)
"""The levels of lines, the least grave first."""
IDS = ("job", "request", "replica")
"""The ids of lines by which they are found."""


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Lines of a level and the graver ones, with these ids. last: how many to begin with; follow: whether to go on."""

    level: str = "debug"
    ids: Mapping[str, str] | None = None
    last: int = 200
    follow: bool = False

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            known = ", ".join(LEVELS)
            raise InvalidSubmissionError(f"no level is named {short_repr(self.level)}; there are {known}")

    def fits(self, line: Mapping[str, Any]) -> bool:
        """Whether a line, as `JsonFormatter` makes it, is wanted."""
        level = str(line.get("level", "")).lower()
        grave = level not in LEVELS or LEVELS.index(level) >= LEVELS.index(self.level)
        return grave and all(line.get(name) == value for name, value in (self.ids or {}).items())
