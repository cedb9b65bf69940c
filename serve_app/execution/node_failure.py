"""The errors with which a task ends: a node that raised, with its inputs as text, or a value that is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.errors import ServeAppError
from serve_app.execution.contained import safe_str

SHOWN_CHARACTERS = 2000
"""The most characters of an input in a failure."""
SHOWN_VALUES = 100
"""The most values of an input in a failure."""


class NodeFailedError(ServeAppError):
    """A node raised: the submitted node that it belongs to, the exception, and its inputs as text."""

    def __init__(
        self,
        node_id: str,
        class_type: str,
        exception: BaseException,
        inputs: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        super().__init__(f"{class_type} {node_id}: {safe_str(exception) or type(exception).__name__}")
        self.node_id, self.class_type, self.exception = node_id, class_type, exception
        self.inputs = inputs or {}

    def __reduce__(self) -> tuple[type[NodeFailedError], tuple[Any, ...]]:
        return (NodeFailedError, (self.node_id, self.class_type, self.exception, self.inputs))


class LostValueError(ServeAppError):
    """A value of another task is lost, and this task cannot recompute it: that task has to run again."""


def shown_inputs(inputs: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Return a node's inputs for a failure: numbers as they are, anything else as text of bounded length."""
    return {name: [_shown(value) for value in values[:SHOWN_VALUES]] for name, values in inputs.items()}


def _shown(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float):
        return value
    return safe_str(value)[:SHOWN_CHARACTERS]
