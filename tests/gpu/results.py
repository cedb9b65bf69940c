"""What was measured of a GPU, kept as it comes: lines of JSON, and a table of all of them in Markdown beside.

It needs no torch, which takes long to import.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

REHEARSED = "A rehearsal on a card that only claims to be one, with small networks: no figure means anything.\n"


@dataclass(frozen=True)
class Stage:
    """A process that measures begins. device: its name; rehearsed: there is no card."""

    name: str
    device: str
    torch: str
    rehearsed: bool


@dataclass(frozen=True)
class Figure:
    """What was measured, and what was predicted and aimed at."""

    name: str
    value: float
    unit: str
    predicted: str = ""
    goal: str = ""


@dataclass(frozen=True)
class Failure:
    """What was not measured, and why, in a line."""

    name: str
    error: str


Row: TypeAlias = Stage | Figure | Failure
_KINDS: dict[str, type[Row]] = {kind.__name__: kind for kind in (Stage, Figure, Failure)}


class Results:
    """Rows in a file, to which several processes add, one after another. The table beside it ends with .md."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self) -> None:
        """Forget what an earlier run has left."""
        self._path.unlink(missing_ok=True)

    def add(self, row: Row) -> None:
        """Add a row, which stays whatever becomes of this process."""
        with self._path.open("a") as file:
            file.write(json.dumps({"kind": type(row).__name__, **asdict(row)}) + "\n")
        self._path.with_suffix(".md").write_text(table(self.rows()))

    def rows(self) -> list[Row]:
        """Return all rows."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        return [_KINDS[row.pop("kind")](**row) for row in map(json.loads, lines)]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the stages of a run have in common."""
    parser.add_argument("--rehearse", action="store_true", help="small networks on a card that only claims to be one")
    parser.add_argument("--comfyui", metavar="DIR", help="a ComfyUI to measure beside")
    parser.add_argument("--comfyui-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--out", type=Path, help="lines of JSON; measured.jsonl or rehearsed.jsonl. A table is beside")


def out_of(given: argparse.Namespace) -> Path:
    """Return where the rows go."""
    return given.out or Path("rehearsed.jsonl" if given.rehearse else "measured.jsonl")


def table(rows: list[Row]) -> str:
    """Return rows as a table of each stage in Markdown; what is of ComfyUI has a name that says so."""
    lines = []
    for row in rows:
        match row:
            case Stage():
                lines += [
                    f"\n## {row.name}\n",
                    f"{row.device}, torch {row.torch}. {REHEARSED if row.rehearsed else ''}",
                ]
                lines += ["| what | measured | predicted | goal |", "|---|---|---|---|"]
            case Figure():
                lines.append(f"| {row.name} | {row.value:.4g} {row.unit} | {row.predicted} | {row.goal} |")
            case Failure():
                lines.append(f"| {row.name} | **failed**: {' '.join(row.error.split())} | | |")
    return "\n".join(lines).lstrip() + "\n"
