"""`serve-app packs DIR`: loads a folder of node packs here, and says which of their classes can run on this server."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from serve_app.cli.lines import say
from serve_app.nodes.call import PACKS
from serve_app.nodes.pack_requirements import requirements, unmet, write_lock
from serve_app.nodes.packs import Packs, load

SHOWN_NAMES = 3
"""How many missing names a line holds, those that most classes use first."""


def packs(packs_dir: Path, *, markdown: bool = False) -> int:
    """Print a line a pack and a line of sums; return 1 if a pack was left out. Runs the packs' code.

    markdown: as a table of that kind.
    """
    with tempfile.TemporaryDirectory() as root:
        folders = {area: Path(root, area) for area in ("input", "output", "temp")}
        for folder in folders.values():
            folder.mkdir()
        found = load(packs_dir, Path(root, "models"), folders)  # type: ignore[arg-type]
    for line in table(found) if markdown else lines(found):
        say(line)
    return 1 if found.failures else 0


def lock(packs_dir: Path) -> int:
    """Write the lock of what the packs need, and say where; return 1 if this installation does not meet it."""
    written = write_lock(packs_dir)
    say(f"{written}: what {len(requirements(packs_dir))} packs need, together")
    missing = unmet(packs_dir)
    for line in missing:
        say(f"not met: {line}")
    return 1 if missing else 0


def lines(found: Packs) -> Iterator[str]:
    """Yield the table: pack, its classes, those that can run here, and what the others use that is missing."""
    by_pack = _by_pack(found)
    width = max(map(len, [*by_pack, *found.failures, "pack"]))
    yield f"{'pack':{width}}  classes  run here  missing"
    for pack, lacks in sorted(by_pack.items()):
        more = _most(lacks)
        yield f"{pack:{width}}  {len(lacks):7}  {sum(not names for names in lacks):8}  {more}".rstrip()
    for pack, reason in sorted(found.failures.items()):
        yield f"{pack:{width}}  left out: {reason}"
    able, every = _sums(by_pack)
    share = f" ({able / every:.0%})" if every else ""
    yield f"{able} of {every} classes can run here{share}; {len(found.failures)} packs are left out"


def table(found: Packs) -> Iterator[str]:
    """Yield the same as a table in Markdown, packs that were left out among the others."""
    by_pack = _by_pack(found)
    yield "| pack | classes | run here | missing, by classes |"
    yield "|---|---|---|---|"
    for pack in sorted({*by_pack, *found.failures}, key=str.lower):
        if pack in found.failures:
            yield f"| {pack} | | | left out: {found.failures[pack]} |"
            continue
        lacks = by_pack[pack]
        yield f"| {pack} | {len(lacks)} | {sum(not names for names in lacks)} | {_most(lacks)} |"
    able, every = _sums(by_pack)
    yield f"| **{len(by_pack)} packs** | **{every}** | **{able} ({able / max(every, 1):.1%})** | |"


def _by_pack(found: Packs) -> dict[str, list[tuple[str, ...]]]:
    """Return what each class of a pack lacks, by pack; the server's own of the same name lack nothing."""
    by_pack: dict[str, list[tuple[str, ...]]] = {pack: [()] * count for pack, count in found.superseded.items()}
    for spec in found.specs.values():
        by_pack.setdefault(spec.python_module.removeprefix(PACKS), []).append(spec.lacks)
    return by_pack


def _sums(by_pack: dict[str, list[tuple[str, ...]]]) -> tuple[int, int]:
    """Return how many classes can run here, and how many there are."""
    every = [names for lacks in by_pack.values() for names in lacks]
    return sum(not names for names in every), len(every)


def _most(lacks: list[tuple[str, ...]]) -> str:
    """Return the missing names that most classes use."""
    counted = Counter(name for names in lacks for name in names).most_common()
    shown = ", ".join(f"{name} ({count})" for name, count in counted[:SHOWN_NAMES])
    return f"{shown} and {len(counted) - SHOWN_NAMES} more" if len(counted) > SHOWN_NAMES else shown
