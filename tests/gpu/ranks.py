"""`python -m tests.gpu.ranks --devices N`: what several cards draw together over NCCL, beside one of them.

The cases are those of the tests: families' rows and tokens, LoRAs, references, masks, sound, and a VAE's strips, with
small networks in fp32. On cards other shapes have other kernels, which sum in another order, so the error allowed is
wider. `--rehearse` runs it on a CPU over gloo. Exits with 1 if a case differs by more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from tests.unit.models.ranks.processes import run_ranks
from tests.unit.models.ranks.test_ranks import Case, lead, write_models

MOST_ERROR = 1e-4


def main() -> int:
    """Print the largest error and what was sent, by case; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.ranks", description=__doc__)
    parser.add_argument("--devices", type=int, default=2, choices=(2, 3, 4), help="ranks (default: %(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU")
    arguments = parser.parse_args()
    there = torch.cuda.device_count()
    if not arguments.rehearse and there < arguments.devices:
        print(f"not run: --devices is {arguments.devices}, and this machine has {there} GPUs; --rehearse runs on a CPU")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_models(models)
        found: dict[str, Case] = run_ranks(models.parent, (arguments.devices,), lead, cards=not arguments.rehearse)[
            arguments.devices
        ]
    for name, case in found.items():
        print(f"{case.error:.1e}  {case.by}, {case.sent + case.exchanged + case.gathered:,} bytes: {name}")
    wrong = [name for name, case in found.items() if not case.error <= MOST_ERROR]
    print(f"{len(wrong)} of {len(found)} cases differ by more than {MOST_ERROR:g}: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
