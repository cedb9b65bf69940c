"""A card that only claims to be one, for as long as a process lives: what is for a GPU runs there and measures nothing.

python -m tests.gpu --rehearse                         # tests and stages
python -m pytest -m gpu -p tests.gpu.rehearsal FILE    # tests
python -m tests.gpu.rehearsal CODE                     # a program as another process of the same card
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

LEDGER = "REHEARSED_CARD"
"""The environment variable with the file of what each process takes of the card."""
PROCESSES = 2
PROGRAM = (sys.executable, "-m", "tests.gpu.rehearsal")
"""The command of another process of the card, but for its code."""


@cache
def begin(number: int = 0) -> ExitStack:
    """Have the card from here on, in this thread and all that begin later. number: of this process on the card.

    Return what would end it. Nothing does: threads of weights go on for as long as the process.
    """
    # Imported here, as a torch that was built for CUDA has no bindings that can be replaced.
    from tests.unit.engine.card import Card
    from tests.unit.engine.card_driver import GB, driven, threads_on

    if LEDGER not in os.environ:
        file, os.environ[LEDGER] = tempfile.mkstemp()
        os.close(file)
        Path(os.environ[LEDGER]).write_bytes(bytes(8 * PROCESSES))
    with open(os.environ[LEDGER], "r+b") as opened:
        ledger = memoryview(mmap.mmap(opened.fileno(), 0)).cast("q")
    card, entered = Card(total_bytes=24 * GB, ledger=ledger, number=number), ExitStack()
    assert card.driver is not None
    entered.enter_context(driven(card.driver))
    entered.enter_context(threads_on(card.used))
    return entered


def pytest_configure() -> None:
    """Have the card before tests are collected, which are skipped where there is none."""
    begin()


if __name__ == "__main__":
    begin(1)
    exec(sys.argv[1])
