"""`python -m tests.gpu.ranks --devices N`: what several cards draw together over NCCL, beside one of them.

The cases are those of the tests: families' rows and tokens, LoRAs, references, masks, sound, and a VAE's strips, with
small networks in fp32. On cards other shapes have other kernels, which sum in another order, so the error allowed is
wider. `--rehearse` runs it on a CPU over gloo. Exits with 1 if a case differs by more.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.unit.models.ranks.processes import run_ranks
from tests.unit.models.ranks.test_ranks import AUTOENCODED, Case, lead, lead_sharded, write_models

MOST_ERROR = 1e-4
SIZES = (2, 3, 4)
FEATURES: Mapping[str, str] = {
    "with and without a LoRA": "LoRAs",
    "ControlNet": "ControlNets",
    "mask|frame is kept|bias": "masks",
    "references|to edit|sound like|follows another|glyphs": "references",
    "with sound": "videos with sound",
}
"""Rows of the table that are of no one family, by what their cases' names have."""
Found = Mapping[int, Mapping[str, Case]]
"""What became of each case, by number of ranks."""


def main() -> int:
    """Print the largest error and what was sent, by case; return the exit status."""
    arguments = _arguments()
    sizes: list[int] = sorted(set(arguments.devices), reverse=True)
    there = torch.cuda.device_count()
    if not arguments.rehearse and there < sizes[0]:
        print(f"not run: --devices is {sizes[0]}, and this machine has {there} GPUs; --rehearse runs on a CPU")
        return 2
    ways: dict[str, Callable[..., Any]] = {"": lead}
    if arguments.shard_weights:
        ways["sharded weights, "] = lead_sharded
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_models(models)
        found: dict[str, Found] = {
            way: run_ranks(models.parent, sizes, leading, cards=not arguments.rehearse) for way, leading in ways.items()
        }
    wrong = [line for way, of_way in found.items() for line in _reported(way, of_way)]
    if arguments.table is not None:
        arguments.table.write_text("\n".join(_table(*found.values())) + "\n")
    return int(bool(wrong))


def _reported(way: str, found: Found) -> list[str]:
    """Print what became of the cases; return those that differ by too much."""
    wrong = []
    for size, cases in found.items():
        for name, case in cases.items():
            print(f"{case.error:.1e}  {case.by}, {case.sent + case.exchanged + case.gathered:,} bytes: {name}")
        differ = [name for name, case in cases.items() if not case.error <= MOST_ERROR]
        of = f"{way}{size} ranks: {len(differ)} of {len(cases)} cases differ by more than {MOST_ERROR:g}"
        print(f"{of}: {', '.join(differ) or 'none'}; largest error {max(case.error for case in cases.values()):.1e}")
        wrong += differ
    return wrong


def _table(whole: Found, sharded: Found | None = None) -> Iterator[str]:
    """Yield a Markdown table of the largest errors: a row a family and a feature, a column a number of ranks.

    sharded: with weights in parts, which has one more column, of all numbers of ranks.
    """
    sizes = sorted(whole)
    titles = ["family or feature", *(f"{size} ranks" for size in sizes)]
    titles += ["divided by"] if sharded is None else ["sharded weights", "divided by"]
    yield _row(titles)
    yield _row(["---"] * len(titles))
    groups = dict.fromkeys(_group(name) for size in sizes for name in whole[size])
    features = [*FEATURES.values(), "VAEs"]
    for group in sorted(groups, key=lambda group: (group in features, group)):
        errors = [_largest(_cases(whole, group, [size])) for size in sizes]
        if sharded is not None:
            errors.append("" if group == "VAEs" else _largest(_cases(sharded, group, sizes)))
        ways = dict.fromkeys(case.by for case in _cases(whole, group, sizes))
        yield _row([group, *errors, "strips" if group == "VAEs" else ", ".join(sorted(ways))])


def _cases(found: Found, group: str, sizes: Sequence[int]) -> list[Case]:
    return [case for size in sizes for name, case in found[size].items() if _group(name) == group]


def _group(name: str) -> str:
    """Return the row of the table that a case belongs to."""
    if name in AUTOENCODED:
        return "VAEs"
    named = (feature for pattern, feature in FEATURES.items() if re.search(pattern, name))
    family = {"a video": "wan", "texts of two lengths": "qwen"}.get(name, name.rpartition(" of ")[2])
    return next(named, family.replace("_", " "))


def _largest(cases: Sequence[Case]) -> str:
    return f"{max(case.error for case in cases):.1e}" if cases else "not run"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.ranks", description=__doc__)
    parser.add_argument(
        "--devices", type=int, nargs="+", default=[2], choices=SIZES, help="ranks, one or several (default: 2)"
    )
    parser.add_argument("--rehearse", action="store_true", help="on a CPU")
    parser.add_argument("--shard-weights", action="store_true", help="also with backbones' weights in parts")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the largest errors as a Markdown table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
