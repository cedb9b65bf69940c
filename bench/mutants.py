"""How many small errors the tests find: random mutants of serve_app, and which tests fail with each.

Mutants are cosmic-ray's, drawn by a seed and written down, one JSON object a line, with what became of each; a campaign
that is started again goes on where it ended:

    uvx --with cosmic-ray python -m bench.mutants --python .venv/bin/python --tree ../mutated --count 300
    uvx --with cosmic-ray python -m bench.mutants --python .venv/bin/python --tree ../mutated --beside ../before

`--tree` and `--beside` are checkouts (`git worktree add`) that nothing else uses: files in them are overwritten and
restored. `--beside` has the suite of another commit, for the mutants that the tree's does not find and whose lines are
there too. `--near` runs only the tests nearest to each; what they do not find is left for a campaign without it.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

PACKAGES = ("sampling", "scheduler", "store", "api", "engine", "models")
OPERATORS = (
    *("AddNot", "ExceptionReplacer", "NumberReplacer", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ZeroIterationForLoop"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub"),
    *("ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq"),
    *("ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is"),
    *("ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_LtE_Lt"),
    *("ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_GtE_Gt"),
    *("ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add"),
    *("ReplaceBinaryOperator_Mul_Div", "ReplaceBinaryOperator_Div_Mul"),
    *("ReplaceBinaryOperator_FloorDiv_Mul", "ReplaceBinaryOperator_Mod_Mul", "ReplaceBinaryOperator_Pow_Mul"),
)
"""Of cosmic-ray's operators those that make what a person might write."""
NEXT = {
    "sampling": ("tests/parity/test_samplers.py", "tests/parity/test_sampler_options.py"),
    "scheduler": ("tests/unit/replica", "tests/unit/api"),
    "store": ("tests/unit/scheduler", "tests/unit/api", "tests/unit/replica", "tests/unit/cli"),
    "api": ("tests/fuzz", "tests/contract"),
    "engine": ("tests/unit/replica/test_runner.py", "tests/parity/test_beside.py"),
    "models": ("tests/unit/engine", "tests/parity", "tests/templates"),
}
"""Where else a package's errors show, after its own unit tests."""
NEAR = 2
"""How many of a module's selections of tests are near."""
NOT_THERE = "its lines are not there"
LIMIT_S = 1200.0
"""How long one selection of tests may take; a mutant with which they do not end is found."""


@dataclass
class Mutant:
    """One changed place. before, after: the lines that differ. found: by suite, the test that failed, "" for none."""

    path: str
    operator: str
    line: int
    before: list[str]
    after: list[str]
    found: dict[str, str] = field(default_factory=dict)

    def applied(self, source: str) -> str | None:
        """Return a file's text with the change, where its lines are there once, None elsewhere."""
        before, after = "".join(self.before), "".join(self.after)
        return source.replace(before, after) if source.count(before) == 1 else None


def drawn(tree: Path, count: int, seed: int) -> Iterator[Mutant]:
    """Yield mutants of a tree: a module by its length, then any one of its changes."""
    rng = random.Random(seed)
    modules = sorted(path for package in PACKAGES for path in (tree / "serve_app" / package).rglob("*.py"))
    lengths = [len(path.read_text().splitlines()) for path in modules]
    seen = set[tuple[str, int, str]]()
    while len(seen) < count:
        [path] = rng.choices(modules, lengths)
        operator = rng.choice(OPERATORS)
        for mutant in some(path, tree, operator, rng):
            if (key := (mutant.path, mutant.line, operator)) not in seen:
                seen.add(key)
                yield mutant


def some(path: Path, tree: Path, name: str, rng: random.Random) -> Iterator[Mutant]:
    """Yield one of the mutants that an operator makes of a module, if it makes any."""
    source, operator = path.read_text(), get_operator(f"core/{name}")()
    places = sum(len(list(operator.mutation_positions(node))) for node in ast_nodes(get_ast(source)))
    if not places:
        return
    mutated = mutate_code(source, operator, rng.randrange(places))
    old, new = source.splitlines(keepends=True), mutated.splitlines(keepends=True)
    [(_, i, j, k, m)] = [code for code in difflib.SequenceMatcher(None, old, new).get_opcodes() if code[0] != "equal"]
    mutant = Mutant(str(path.relative_to(tree)), name, i + 1, old[i:j], new[k:m])
    # One that is not alone in its file could not be told apart in another commit's.
    if mutant.applied(source) == mutated:
        yield mutant


def selections(tree: Path, path: str) -> Iterator[list[str]]:
    """Yield the tests that look at a module, the nearest first."""
    parts = Path(path).with_suffix("").parts[1:]
    module = f"serve_app.{'.'.join(parts)}"
    mirror = Path("tests/unit", *parts[:-1], f"test_{parts[-1]}.py")
    own = Path("tests/unit", parts[0])
    naming = {
        str(file.relative_to(tree))
        for file in (tree / "tests/unit").rglob("test_*.py")
        if module in file.read_text() or f"from {module.rpartition('.')[0]} import {parts[-1]}" in file.read_text()
    }
    room = [str(mirror.parent)] if mirror.parent != own and (tree / mirror.parent).exists() else []
    yield [str(mirror)] if (tree / mirror).exists() else []
    yield room + [test for test in sorted(naming) if not room or not test.startswith(f"{room[0]}/")][:12]
    yield [str(own)]
    yield [place for place in NEXT[parts[0]] if (tree / place).exists()]


def found_by(tree: Path, mutant: Mutant, path: str, python: str, near: bool) -> str:
    """Return which test fails with a mutant in a tree, "" if none does."""
    file = tree / path
    source = file.read_text() if file.exists() else ""
    mutated = mutant.applied(source)
    if mutated is None:
        return NOT_THERE
    file.write_text(mutated)
    try:
        for tests in itertools.islice(selections(tree, path), NEAR if near else None):
            if tests and (failed := first_failure(tree, tests, python)):
                return failed
    finally:
        file.write_text(source)
    return ""


def first_failure(tree: Path, tests: Sequence[str], python: str) -> str:
    """Return the first of these tests that fails, "" if none does."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    line = [python, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--tb=no", *tests]
    try:
        done = subprocess.run(line, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT_S:.0f} s"
    if done.returncode == 0:
        return ""
    told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return told[0] if told else f"status {done.returncode}"


def renamed(tree: Path, beside: Path) -> dict[str, str]:
    """Return where each file of a tree is in another commit's, where that is elsewhere."""
    commits = [
        subprocess.run(["git", "rev-parse", "HEAD"], cwd=at, capture_output=True, text=True, check=True).stdout.strip()
        for at in (beside, tree)
    ]
    command = ["git", "diff", "-M40", "--diff-filter=R", "--name-status", "-l0", *commits, "--", "serve_app"]
    lines = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.splitlines()
    return {new: old for _, old, new in (line.split("\t") for line in lines)}


def told(mutants: Sequence[Mutant]) -> Iterator[str]:
    """Yield what came of a campaign."""
    tried = [m for m in mutants if "tree" in m.found]
    survivors = [m for m in tried if not m.found["tree"]]
    yield f"{len(tried)} of {len(mutants)} mutants tried: {len(tried) - len(survivors)} found, {len(survivors)} not"
    beside = Counter(bool(m.found["beside"]) for m in survivors if m.found.get("beside", NOT_THERE) != NOT_THERE)
    yield f"of {beside.total()} that are not found and are in the other suite's tree, that finds {beside[True]}"
    for m in survivors:
        change = f"{''.join(m.before).strip()} -> {''.join(m.after).strip()}"
        yield f"{m.path}:{m.line} {m.operator}: {change}; the other suite: {m.found.get('beside', 'not run')}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw mutants unless they were drawn, try those that were not tried, and say what came of all."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("bench/results/mutants.jsonl"))
    parser.add_argument("--count", type=int, default=0, help="have at least so many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--python", default=sys.executable, help="that runs the tests")
    parser.add_argument("--near", action="store_true", help="run only the tests nearest to each mutant")
    given = parser.parse_args(arguments)
    tree, python = given.tree.resolve(), os.path.abspath(given.python)
    suites: dict[str, tuple[Path, dict[str, str]]] = {"tree": (tree, {})}
    if given.beside is not None:
        suites["beside"] = (given.beside.resolve(), renamed(tree, given.beside.resolve()))
    lines = given.results.read_text().splitlines() if given.results.exists() else []
    mutants = [Mutant(**json.loads(line)) for line in lines]
    if len(mutants) < given.count:
        mutants += list(drawn(tree, given.count, given.seed))[len(mutants) :]
        write(given.results, mutants)
    for mutant, (name, (at, elsewhere)) in itertools.product(mutants, suites.items()):
        if name in mutant.found or mutant.found.get("tree") or (name == "beside" and "tree" not in mutant.found):
            continue
        failed = found_by(at, mutant, elsewhere.get(mutant.path, mutant.path), python, given.near)
        print(f"{name}: {mutant.path}:{mutant.line} {mutant.operator}: {failed or 'not found'}", flush=True)
        if failed or not given.near:
            mutant.found[name] = failed
            write(given.results, mutants)
    print("\n".join(told(mutants)))


def write(path: Path, mutants: Sequence[Mutant]) -> None:
    """Write a campaign down, at once."""
    rows: list[dict[str, Any]] = [asdict(mutant) for mutant in mutants]
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.rename(path)


if __name__ == "__main__":
    main()
