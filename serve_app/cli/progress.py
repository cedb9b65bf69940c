"""Progress of a job on standard error: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from serve_app.cli.lines import print_line
from serve_app.printable import printable

Show: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Shows one event, given its kind and data."""

NODE_KINDS = ("executed", "finished", "blocked", "message")
"""Kinds of events that do not change the job's state."""


@contextmanager
def progress(prompt: Mapping[str, Any]) -> Iterator[Show]:
    """Yield a function that shows events on standard error. prompt: for the nodes' names."""
    if not sys.stderr.isatty():
        yield LineProgress(prompt).show
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as display:
        yield BarProgress(prompt, display).show


class LineProgress:
    """Prints one line per event, and one for every tenth of a node's progress."""

    def __init__(self, prompt: Mapping[str, Any]) -> None:
        self._prompt = prompt
        self._shown: dict[str, int] = {}

    def show(self, kind: str, data: Mapping[str, Any]) -> None:
        """Print the event, if it is not a repetition."""
        if kind == "progress":
            name, tenth = _name(self._prompt, data["node"]), 10 * data["value"] // max(data["max"], 1)
            if self._shown.get(data["node"]) != tenth:
                self._shown[data["node"]] = tenth
                print_line(f"{name}: {data['value']}/{data['max']}", error=True)
        elif kind == "executing":
            print_line(_name(self._prompt, data["node"]), error=True)
        elif kind == "blocked":
            print_line(f"{_name(self._prompt, data['node'])} is passed over: {data['message']}", error=True)
        elif text := _text(kind, data):
            print_line(f"{_name(self._prompt, data['node'])}: {text}", error=True)
        elif kind not in NODE_KINDS:
            print_line(kind, error=True)


class BarProgress:
    """Shows one bar for the job's state, and one for every node that reports progress."""

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
        elif text := _text(kind, data):
            self._display.update(self._state, description=printable(f"{_name(self._prompt, data['node'])}: {text}"))
        elif kind not in NODE_KINDS:
            self._display.update(self._state, description=printable(kind))


def _text(kind: str, data: Mapping[str, Any]) -> str:
    """Return what a node says of itself, such as how far its models are loaded; "" of other events."""
    return str(data["data"].get("text", "")) if kind == "message" and data["type"] == "progress_text" else ""


def _name(prompt: Mapping[str, Any], node: str) -> str:
    """Return a node's display name, e.g. "KSampler 3"."""
    known = prompt.get(node)
    if isinstance(known, dict) and "class_type" in known:
        return printable(f"{known['class_type']} {node}")
    return printable(f"node {node}")
