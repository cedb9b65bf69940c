"""Everything that is to be learned of a GPU, in one command: its tests, then what is measured, as a table.

    python -m tests.gpu --comfyui DIR --comfyui-python PYTHON     # at most 45 minutes
    python -m tests.gpu --rehearse                                # without a GPU: that all of it runs

The tests and each stage are processes of their own, ended where they take too long, so that none that fails, hangs or
loses the card keeps the others from running. Each figure and failure is written as it comes, as a line of
measured.jsonl, and into measured.md, a table. The exit status is 0 if all tests passed and all was measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from time import monotonic

from tests.gpu.results import Failure, Results, arguments, out_of

PARTS: Mapping[str, float] = {
    "card": 2.0,
    "tests": 8.0,
    "servers": 3.0,
    "transformers": 10.0,
    "jobs": 9.0,
    "parity": 6.0,
    "curves": 7.0,
}
"""By part of a run, in order: how many minutes it may take, on one H100 with a ComfyUI. An estimate."""
TESTS = ("pytest", "-o", "addopts=", "-q", "-m", "gpu", "tests/gpu/test_card.py")
GRACE_S = 60.0
"""How much longer a stage may take for what it began within its minutes."""


def main(given_arguments: Sequence[str] | None = None) -> int:
    """Run the parts, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="Test and measure one GPU.")
    parser.add_argument("parts", nargs="*", choices=(*PARTS, []), help="all, if none is named")
    parser.add_argument("--minutes", type=float, default=sum(PARTS.values()), help="after which no part begins")
    arguments(parser)
    given = parser.parse_args(given_arguments)
    results, until = Results(out_of(given)), monotonic() + 60 * given.minutes
    results.begin()
    failed = 0
    for part in given.parts or PARTS:
        left = min(PARTS[part], (until - monotonic()) / 60)
        reason = run(part, given, left) if left > 0 else f"the {given.minutes:g} minutes were over"
        if reason:
            results.add(Failure(part, reason))
            failed += 1
    print(out_of(given).with_suffix(".md").read_text() if failed else "all was measured", flush=True)
    return int(failed > 0)


def run(part: str, given: argparse.Namespace, minutes: float) -> str:
    """Run a part in a process of its own; return why it is not whole, if it is not."""
    command = [sys.executable, "-m", *TESTS]
    if part == "tests" and given.rehearse:
        command += ["-p", "tests.gpu.rehearsal"]
    if part != "tests":
        command = [
            sys.executable,
            "-m",
            "tests.gpu.measure",
            part,
            "--minutes",
            str(minutes),
            "--out",
            str(out_of(given)),
        ]
        command += ["--rehearse"] if given.rehearse else []
        if given.comfyui:
            command += ["--comfyui", given.comfyui, "--comfyui-python", given.comfyui_python]
    try:
        status = subprocess.run(command, check=False, timeout=60 * minutes + GRACE_S).returncode
    except subprocess.TimeoutExpired:
        return f"ended after {minutes:.2g} minutes, as it hung"
    return f"exit status {status}; the reason is above" if status else ""


if __name__ == "__main__":
    sys.exit(main())
