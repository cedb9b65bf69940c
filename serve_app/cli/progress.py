"""A job's events as a person sees them: bars on a terminal, plain lines elsewhere. Both go to standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from serve_app.cli.lines import say
from serve_app.printable import printable

Show: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Shows one event, given its kind and data."""

OF_NODES = ("executed", "finished", "blocked", "message")
"""Kinds that say nothing of the job's own state."""


@contextmanager
def progress(prompt: Mapping[str, Any]) -> Iterator[Show]:
    """Yield what shows events in the way that suits standard error. prompt: names the nodes."""
    if not sys.stderr.isatty():
        yield Lines(prompt).show
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as display:
        yield Bars(prompt, display).show


class Lines:
    """One line for what happens, and one for every tenth of a node's progress."""

    def __init__(self, prompt: Mapping[str, Any]) -> None:
        self._prompt = prompt
        self._shown: dict[str, int] = {}

    def show(self, kind: str, data: Mapping[str, Any]) -> None:
        """Print the event, if it says something new."""
        if kind == "progress":
            name, tenth = _name(self._prompt, data["node"]), 10 * data["value"] // max(data["max"], 1)
            if self._shown.get(data["node"]) != tenth:
                self._shown[data["node"]] = tenth
                say(f"{name}: {data['value']}/{data['max']}", error=True)
        elif kind == "executing":
            say(_name(self._prompt, data["node"]), error=True)
        elif kind == "blocked":
            say(f"{_name(self._prompt, data['node'])} is passed over: {data['message']}", error=True)
        elif kind not in OF_NODES:
            say(kind, error=True)


class Bars:
    """One bar for the job's state, and one for every node that reports progress."""

    def __init__(self, prompt: Mapping[str, Any], display: Progress) -> None:
        self._prompt, self._display = prompt, display
        self._state = display.add_task("sent", total=None)
        self._bars: dict[str, TaskID] = {}

    def show(self, kind: str, data: Mapping[str, Any]) -> None:
        """Move the bars."""
        if kind == "progress":
            node = data["node"]
            if node not in self._bars:
                self._bars[node] = self._display.add_task(_name(self._prompt, node), total=data["max"])
            self._display.update(self._bars[node], completed=data["value"], total=data["max"])
        elif kind == "executing":
            self._display.update(self._state, description=_name(self._prompt, data["node"]))
        elif kind not in OF_NODES:
            self._display.update(self._state, description=printable(kind))


def _name(prompt: Mapping[str, Any], node: str) -> str:
    """Return a node as people know it, e.g. "KSampler 3"."""
    known = prompt.get(node)
    if isinstance(known, dict) and "class_type" in known:
        return printable(f"{known['class_type']} {node}")
    return printable(f"node {node}")
