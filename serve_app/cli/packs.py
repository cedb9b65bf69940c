"""`serve-app packs DIR`: load a folder of node packs, and report which of their classes can run on this server."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve_app.cli.lines import print_json, print_line
from serve_app.execution.call import PACKS
from serve_app.packs.loading import Packs, load_packs
from serve_app.packs.requirements import requirements, unmet, write_lock

SHOWN_NAMES = 3
"""How many missing names a line has, the most used first."""


def report_packs(packs_dir: Path, *, markdown: bool = False, as_json: bool = False) -> int:
    """Print a line for each pack and a line of sums; return 1 if a pack was left out. Runs the packs' code.

    markdown: print a Markdown table; as_json: print JSON instead.
    """
    with tempfile.TemporaryDirectory() as root:
        folders = {area: Path(root, area) for area in ("input", "output", "temp")}
        for folder in folders.values():
            folder.mkdir()
        found = load_packs(packs_dir, Path(root, "models"), folders)  # type: ignore[arg-type]
    if as_json:
        print_json(report(found))
        return 1 if found.failures else 0
    for line in markdown_table(found) if markdown else report_lines(found):
        print_line(line)
    return 1 if found.failures else 0


def make_lock_file(packs_dir: Path) -> int:
    """Write the lock file of the packs' requirements; return 1 if this installation does not meet it."""
    written = write_lock(packs_dir)
    print_line(f"{written}: what {len(requirements(packs_dir))} packs need, together")
    missing = unmet(packs_dir)
    for line in missing:
        print_line(f"not met: {line}")
    return 1 if missing else 0


@dataclass(frozen=True, slots=True)
class _Row:
    """A loaded pack. classes: all of its classes. able: those that can run here. missing: names that others use and
    that are not here.

    left_out: classes that could not be loaded, each with the reason.
    """

    classes: int
    able: int
    missing: str
    left_out: tuple[str, ...]


def report(found: Packs) -> dict[str, Any]:
    """Return the table as JSON: each pack with its classes, and what was left out or refused to run."""
    return {
        "packs": {pack: asdict(row) for pack, row in sorted(_rows(found).items())},
        "left_out": dict(found.failures),
        "refused_to_run": {pack: list(commands) for pack, commands in found.installs.items()},
    }


def report_lines(found: Packs) -> Iterator[str]:
    """Yield the table: pack, its classes, those that can run here, and missing names that the others use."""
    rows = _rows(found)
    width = max(map(len, [*rows, *found.failures, "pack"]))
    yield f"{'pack':{width}}  classes  run here  missing"
    for pack, row in sorted(rows.items()):
        yield f"{pack:{width}}  {row.classes:7}  {row.able:8}  {row.missing}".rstrip()
        yield from (f"{'':{width}}  {reason}" for reason in row.left_out)
    for pack, reason in sorted(found.failures.items()):
        yield f"{pack:{width}}  left out: {reason}"
    for pack, commands in sorted(found.installs.items()):
        yield f"{pack:{width}}  refused to run: {'; '.join(commands)}"
    able, every = sum(row.able for row in rows.values()), sum(row.classes for row in rows.values())
    share = f" ({able / every:.0%})" if every else ""
    yield f"{able} of {every} classes can run here{share}; {len(found.failures)} packs are left out"


def markdown_table(found: Packs) -> Iterator[str]:
    """Yield the same as a Markdown table, including packs that were left out."""
    rows = _rows(found)
    yield "| pack | classes | run here | missing, by classes |"
    yield "|---|---|---|---|"
    for pack in sorted({*rows, *found.failures}, key=str.lower):
        if pack in found.failures:
            yield f"| {pack} | | | left out: {found.failures[pack]} |"
            continue
        row = rows[pack]
        yield f"| {pack} | {row.classes} | {row.able} | {'; '.join(filter(None, (row.missing, *row.left_out)))} |"
    able, every = sum(row.able for row in rows.values()), sum(row.classes for row in rows.values())
    yield f"| **{len(rows)} packs** | **{every}** | **{able} ({able / max(every, 1):.1%})** | |"


def _rows(found: Packs) -> dict[str, _Row]:
    """Return a row for each loaded pack; classes that the server has itself lack nothing."""
    lacks: dict[str, list[tuple[str, ...]]] = {pack: [()] * count for pack, count in found.superseded.items()}
    lacks |= {pack: lacks.get(pack, []) for pack in found.left_out}
    for spec in found.specs.values():
        lacks.setdefault(spec.python_module.removeprefix(PACKS), []).append(spec.lacks)
    return {pack: _row(of_pack, found.left_out.get(pack, {})) for pack, of_pack in lacks.items()}


def _row(lacks: list[tuple[str, ...]], left_out: Mapping[str, str]) -> _Row:
    reasons = tuple(f"{name} is left out: {reason}" for name, reason in sorted(left_out.items()))
    return _Row(len(lacks) + len(left_out), sum(not names for names in lacks), _most(lacks), reasons)


def _most(lacks: list[tuple[str, ...]]) -> str:
    """Return the missing names that most classes use."""
    counted = Counter(name for names in lacks for name in names).most_common()
    shown = ", ".join(f"{name} ({count})" for name, count in counted[:SHOWN_NAMES])
    return f"{shown} and {len(counted) - SHOWN_NAMES} more" if len(counted) > SHOWN_NAMES else shown
