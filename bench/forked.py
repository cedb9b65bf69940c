"""Runs of tests in forks of a process that has imported everything but what is under test."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

IMPORT_S = 180
"""How long a fork may take until its first test."""
SLACK_S, SLOWER = 30.0, 8.0
"""A test is ended that takes longer than this and this multiple of its recorded time."""


@dataclass(eq=False)
class Chosen:
    """A pytest plugin that runs tests in an order given, and ends the process with the test that does not end."""

    tests: Sequence[str]
    seconds: Mapping[str, float]
    failed: list[str] = field(default_factory=list)
    ran: int = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the chosen tests, in their order."""
        place = {test: i for i, test in enumerate(self.tests)}
        items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Let a test take its time, and the process die after it."""
        signal.setitimer(signal.ITIMER_REAL, SLACK_S + SLOWER * self.seconds.get(item.nodeid, 0.0))
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what fails."""
        self.ran += 1
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note what cannot even be imported."""
        if report.failed:
            self.failed.append(report.nodeid)


class Warm:
    """A process that has imported what a tree's serve_app imports of others, and forks for each run of tests."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        # Bytecode is written by recording alone: of what is changed for a moment there must be none.
        sys.dont_write_bytecode = True
        os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
        sys.path.insert(0, str(tree))
        os.chdir(tree)
        plugins = [plugin.module for plugin in entry_points(group="pytest11")]
        for name in [*plugins, *imported(tree)]:
            with suppress(Exception):
                importlib.import_module(name)
        # pytest collects garbage at its end, which would look through all of it in each fork.
        gc.freeze()

    def first_failure(self, tests: Sequence[str], seconds: Mapping[str, float]) -> str:
        """Return the first of these tests that fails or does not end, "" if none does."""
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder, "result.json")
            if (process := os.fork()) == 0:
                run(tests, seconds, result)
            _, status = os.waitpid(process, 0)
            # With what its tests started and left.
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            if os.WIFSIGNALED(status):
                return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
            status, failed, ran = json.loads(result.read_text())
            if status and failed:
                return str(failed[0])
            if status or not ran:
                return f"pytest's status {status} after {ran} reports"
            return ""


def run(tests: Sequence[str], seconds: Mapping[str, float], into: Path) -> None:
    """Run tests in this process, which then ends; write pytest's status, what failed and how many reports it had."""
    os.setsid()
    signal.setitimer(signal.ITIMER_REAL, IMPORT_S)
    out = os.open(into.with_suffix(".out"), os.O_CREAT | os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    plugin = Chosen(tests, seconds)
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    status = pytest.main(["-x", "-p", "no:cacheprovider", "--tb=no", *files], plugins=[plugin])
    signal.setitimer(signal.ITIMER_REAL, 0)
    into.write_text(json.dumps([int(status), plugin.failed, plugin.ran]))
    os._exit(0)


def imported(tree: Path) -> list[str]:
    """Return the modules of others that all of a tree's serve_app imports."""
    program = (
        "import importlib, json, pkgutil, sys, serve_app\n"
        "for module in pkgutil.walk_packages(serve_app.__path__, 'serve_app.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        try: importlib.import_module(module.name)\n"
        "        except Exception: pass\n"
        "others = [n for n, m in sys.modules.items() if 'site-packages' in str(getattr(m, '__file__', ''))]\n"
        "print(json.dumps(others))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, check=True)
    return [str(name) for name in json.loads(done.stdout.splitlines()[-1])]
