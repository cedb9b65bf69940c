"""Detects stateful classes, whose function returns its node object: its state may last for several rounds of a job.

VideoHelperSuite's VHS_BatchManager is one: its object holds a film open.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from types import FunctionType
from typing import Any


def returns_itself(node_class: type) -> bool:
    """Whether a class's function returns the object that it is called on, as its source says: `return (self,)`."""
    function = getattr(node_class, str(getattr(node_class, "FUNCTION", "")), None)
    if not isinstance(function, FunctionType):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    own = next(iter(inspect.signature(function).parameters), None)
    returned = (node.value for node in ast.walk(tree) if isinstance(node, ast.Return))
    return any(_names(value, own) for value in returned)


def mark_stateful(node_class: Any) -> None:
    """Keep the class's results, and all derived ones, private to one job."""
    node_class.RETURNS_ITSELF = True
    if not hasattr(node_class, "IS_CHANGED"):
        node_class.IS_CHANGED = staticmethod(_always)


def _names(value: ast.expr | None, name: str | None) -> bool:
    """Whether an expression is that name, or a tuple or list that has it."""
    parts = value.elts if isinstance(value, ast.Tuple | ast.List) else [value]
    return any(isinstance(part, ast.Name) and part.id == name for part in parts)


def _always(**inputs: Any) -> float:
    return float("nan")
