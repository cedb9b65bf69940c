"""`serve-app packs DIR`: loads a folder of node packs here, and says which of their classes can run on this server."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from serve_app.nodes.call import PACKS
from serve_app.nodes.packs import Packs, load

SHOWN_NAMES = 3
"""How many missing names a line holds, those that most classes use first."""


def packs(packs_dir: Path) -> int:
    """Print a line a pack and a line of sums; return 1 if a pack was left out. Runs the packs' code."""
    with tempfile.TemporaryDirectory() as root:
        folders = {area: Path(root, area) for area in ("input", "output", "temp")}
        for folder in folders.values():
            folder.mkdir()
        found = load(packs_dir, Path(root, "models"), folders)  # type: ignore[arg-type]
    print("\n".join(lines(found)))
    return 1 if found.failures else 0


def lines(found: Packs) -> Iterator[str]:
    """Yield the table: pack, its classes, those that can run here, and what the others use that is missing."""
    by_pack: dict[str, list[tuple[str, ...]]] = {}
    for spec in found.specs.values():
        by_pack.setdefault(spec.python_module.removeprefix(PACKS), []).append(spec.lacks)
    width = max(map(len, [*by_pack, *found.failures, "pack"]))
    yield f"{'pack':{width}}  classes  run here  missing"
    for pack, lacks in sorted(by_pack.items()):
        counted = Counter(name for names in lacks for name in names).most_common()
        shown = ", ".join(f"{name} ({count})" for name, count in counted[:SHOWN_NAMES])
        more = f" and {len(counted) - SHOWN_NAMES} more" if len(counted) > SHOWN_NAMES else ""
        yield f"{pack:{width}}  {len(lacks):7}  {sum(not names for names in lacks):8}  {shown}{more}".rstrip()
    for pack, reason in sorted(found.failures.items()):
        yield f"{pack:{width}}  left out: {reason}"
    able = sum(not spec.lacks for spec in found.specs.values())
    share = f" ({able / len(found.specs):.0%})" if found.specs else ""
    yield f"{able} of {len(found.specs)} classes can run here{share}; {len(found.failures)} packs are left out"
