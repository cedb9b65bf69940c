"""A pytest plugin that lists the tests that cost most processor time: `python -m pytest -p tests.processor_time`.

Wall time, as of `--durations`, says little where several runs of pytest share two cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

LISTED = 40
"""How many tests and how many files are shown."""

costs: dict[str, float] = {}
"""Processor seconds of each test with its fixtures, of this process and of the children that it waited for.

What a fixture of wider scope costs is its first or last test's. Ray's processes are no children of the test.
"""


def processor_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    start = processor_s()
    try:
        return (yield)
    finally:
        costs[item.nodeid] = processor_s() - start


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    files: dict[str, float] = {}
    for test, cost in costs.items():
        file = test.partition("::")[0]
        files[file] = files.get(file, 0.0) + cost
    terminalreporter.section(f"processor seconds: {processor_s():.1f} with imports, {sum(costs.values()):.1f} in tests")
    for found in (files, costs):
        for name, cost in sorted(found.items(), key=lambda entry: -entry[1])[:LISTED]:
            if cost < 0.1:
                break
            terminalreporter.write_line(f"{cost:8.1f} {name}")
