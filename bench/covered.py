"""Which tests execute each line of serve_app, and how long each takes: recorded once, by one run of them.

    python -m bench.covered /tmp/unit.json tests/unit

Needs coverage beside what the tests need; see README.md.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass(eq=False)
class Recorder:
    """A pytest plugin that gives each test, and each fixture that tests share, a context of its own in the coverage."""

    coverage: Any
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    failed: set[str] = field(default_factory=set)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Record what a test executes under its name."""
        self.coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self.coverage.switch_context("")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
        """Record what a module's fixture executes under the module, so that it counts for all of its tests."""
        if request.scope == "function":
            return (yield)
        self.coverage.switch_context(request.node.nodeid)
        try:
            return (yield)
        finally:
            self.coverage.switch_context(request._pyfuncitem.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up the time of a test's phases."""
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.add(report.nodeid)


@dataclass
class Covered:
    """What was recorded of a tree. seconds: by test. parts: coverage's data of each run."""

    tree: Path
    seconds: dict[str, float]
    parts: Sequence[Any]

    @classmethod
    def read(cls, tree: Path, recorded: Sequence[Path]) -> Covered:
        """Read the files that runs have written."""
        from coverage import CoverageData

        parts = [CoverageData(str(path.with_suffix(".coverage"))) for path in recorded]
        for part in parts:
            part.read()
        seconds = {test: s for path in recorded for test, s in json.loads(path.read_text()).items()}
        return cls(tree, seconds, parts)

    def tests(self, path: str, line: int, budget_s: float) -> list[str]:
        """Return tests that execute a line, by file: the mirror of the module first, then those with the least to run.

        Within a file one case of each test comes before the others, and quick ones before slow ones. There are as many
        as take `budget_s` together.
        """
        lines = executed_with(ast.parse((self.tree / path).read_text()), line)
        contexts = {
            context
            for part in self.parts
            for file in part.measured_files()
            if file.endswith(f"/{path}")
            for number, names in part.contexts_by_lineno(file).items()
            if lines is None or number in lines
            for context in names
            if context
        }
        chosen = [test for test in self.seconds if test in contexts or test.partition("::")[0] in contexts]
        mirror = f"tests/unit/{Path(path).parent.relative_to('serve_app')}/test_{Path(path).name}"
        files = defaultdict[str, list[str]](list)
        for test in sorted(chosen, key=self.seconds.__getitem__):
            files[test.partition("::")[0]].append(test)
        ordered = sorted(files.items(), key=lambda f: (f[0] != mirror, sum(self.seconds[test] for test in f[1])))
        tests = [test for _, group in ordered for test in each_in_turn(group)]
        spent = itertools.accumulate(self.seconds[test] for test in tests)
        return [test for i, (test, s) in enumerate(zip(tests, spent, strict=True)) if s <= budget_s or not i]


def each_in_turn(tests: Sequence[str]) -> list[str]:
    """Return tests with the first case of each before the second of any."""
    seen = Counter[str]()
    turns = list[tuple[int, str]]()
    for test in tests:
        name = test.partition("[")[0]
        turns.append((seen[name], test))
        seen[name] += 1
    return [test for _, test in sorted(turns, key=lambda turn: turn[0])]


def executed_with(module: ast.Module, line: int) -> range | None:
    """Return the lines whose execution a change of a line shows in, None for the whole module.

    A statement may be recorded under any of its lines. What a module does when it is imported shows wherever the module
    is used, and a default of a function wherever that is called.
    """
    around = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.stmt) and first_line(node) <= line <= (node.end_lineno or node.lineno)
    ]
    functions = [node for node in around if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    if not functions:
        return None
    innermost = min(around, key=lambda node: (node.end_lineno or node.lineno) - first_line(node))
    body = getattr(innermost, "body", [])
    if innermost in functions:
        return range(body[0].lineno, (innermost.end_lineno or innermost.lineno) + 1)
    if body and line < first_line(body[0]):
        return range(innermost.lineno, first_line(body[0]))
    return range(innermost.lineno, (innermost.end_lineno or innermost.lineno) + 1)


def first_line(node: ast.stmt) -> int:
    """Return the first line of a statement, which may be its decorator's."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def record(tree: Path, tests: Sequence[str], into: Path) -> int:
    """Run tests of a tree; write what they execute and how long they take into a JSON file; return pytest's status."""
    from coverage import Coverage

    data = into.with_suffix(".coverage")
    coverage = Coverage(data_file=str(data), source=[str(tree / "serve_app")], config_file=False)
    recorder = Recorder(coverage)
    coverage.start()
    status = int(pytest.main(["-p", "no:cacheprovider", *tests], plugins=[recorder]))
    coverage.stop()
    coverage.save()
    passed = {test: round(s, 3) for test, s in recorder.seconds.items() if test not in recorder.failed}
    into.write_text(json.dumps(passed))
    return status


def main(arguments: Sequence[str] | None = None) -> None:
    """Record."""
    parser = argparse.ArgumentParser(prog="python -m bench.covered", description=__doc__.splitlines()[0])
    parser.add_argument("into", type=Path)
    parser.add_argument("tests", nargs="+")
    given, options = parser.parse_known_args(arguments)
    sys.exit(record(Path.cwd(), [*given.tests, *options], given.into.resolve()))


if __name__ == "__main__":
    main()
