"""How many small errors the tests find: random mutants of serve_app, and which tests fail with each.

Mutants are cosmic-ray's, drawn by a seed and written down, one JSON object a line, with what became of each; a campaign
that is started again goes on where it ended:

    python -m bench.mutants draw --tree ../mutated --count 300 --seed 30
    python -m bench.mutants try --tree ../mutated --covered /tmp/unit.json

`--tree` is a checkout (`git worktree add`) that nothing else uses: files in it are overwritten and restored.
`--covered` is what `bench.covered` recorded: each mutant meets the tests that execute its line, and is a survivor at
once where none does. With `--suite before` and the recording of another commit, its checkout is tried on the survivors.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.covered import Covered
    from bench.forked import Warm

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
NOT_THERE = "its lines are not there"
NOT_EXECUTED = "no test executes it"
SURVIVED = "survived"


@dataclass
class Mutant:
    """One changed place. before, after: the lines that differ.

    found: by suite, the test that failed, or why none did. verdict: of a survivor, what a person says about it.
    """

    path: str
    operator: str
    line: int
    before: list[str]
    after: list[str]
    found: dict[str, str] = field(default_factory=dict)
    verdict: str = ""

    def applied(self, source: str) -> str | None:
        """Return a file's text with the change, where its lines are there once, None elsewhere."""
        before, after = "".join(self.before), "".join(self.after)
        return source.replace(before, after) if source.count(before) == 1 else None

    def killed(self, suite: str) -> bool:
        """Return whether a test of a suite fails with it."""
        return self.found.get(suite, SURVIVED) not in (SURVIVED, NOT_EXECUTED, NOT_THERE)


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
    """Yield one of the mutants that an operator makes of a module, if it makes any that matters."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source, operator = path.read_text(), get_operator(f"core/{name}")()
    places = sum(len(list(operator.mutation_positions(node))) for node in ast_nodes(get_ast(source)))
    if not places:
        return
    mutated = mutate_code(source, operator, rng.randrange(places))
    old, new = source.splitlines(keepends=True), mutated.splitlines(keepends=True)
    [(_, i, j, k, m)] = [code for code in difflib.SequenceMatcher(None, old, new).get_opcodes() if code[0] != "equal"]
    mutant = Mutant(str(path.relative_to(tree)), name, i + 1, old[i:j], new[k:m])
    # One that is not alone in its file could not be told apart in another commit's.
    alone = mutant.applied(source) == mutated
    if alone and is_meant(name, source, mutated) and not immaterial(source) & set(range(i + 1, j + 1)):
        yield mutant


def is_meant(name: str, source: str, mutated: str) -> bool:
    """Return whether a changed text is Python, and a sign that was replaced was an operator.

    It is none in a signature's `*` and in a `**` that unpacks.
    """
    try:
        before, after = (
            Counter(type(node.op) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.BinOp))
            for text in (source, mutated)
        )
    except SyntaxError:
        return False
    return before != after or not name.startswith("ReplaceBinaryOperator")


def immaterial(source: str) -> set[int]:
    """Return the lines of a module whose change no test can see.

    They are imports for types alone, messages of logs, and whether an object has slots.
    """
    logged = ("_log.debug(", "_log.info(", "_log.warning(", "_log.error(", "_log.exception(")
    return {
        line
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        or (isinstance(node, ast.Call) and ast.unparse(node).startswith(logged))
        or (isinstance(node, ast.Call) and ast.unparse(node) == "dataclass(frozen=True, slots=True)")
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def found_by(warm: Warm, covered: Covered, mutant: Mutant, path: str, budget_s: float) -> str:
    """Return which test fails with a mutant in a tree, or why none does."""
    file = warm.tree / path
    source = file.read_text() if file.exists() else ""
    mutated = mutant.applied(source)
    if mutated is None:
        return NOT_THERE
    tests = covered.tests(path, source[: source.index("".join(mutant.before))].count("\n") + 1, budget_s)
    if not tests:
        return NOT_EXECUTED
    with replaced(file, mutated):
        return warm.first_failure(tests, covered.seconds) or SURVIVED


@contextmanager
def replaced(file: Path, text: str) -> Iterator[None]:
    """Have a file say something else for a while; its time is restored too, by which bytecode is known to be its."""
    source, times = file.read_text(), file.stat()
    file.write_text(text)
    try:
        yield
    finally:
        file.write_text(source)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def renamed(tree: Path, other: Path) -> dict[str, str]:
    """Return where each file of a tree is in another commit's, where that is elsewhere."""
    commits = [
        subprocess.run(["git", "rev-parse", "HEAD"], cwd=at, capture_output=True, text=True, check=True).stdout.strip()
        for at in (other, tree)
    ]
    command = ["git", "diff", "-M40", "--diff-filter=R", "--name-status", "-l0", *commits, "--", "serve_app"]
    lines = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.splitlines()
    return {new: old for _, old, new in (line.split("\t") for line in lines)}


def summary(mutants: Sequence[Mutant], suite: str) -> Iterator[str]:
    """Yield what came of a campaign: counts by package, and each survivor."""
    for package in PACKAGES:
        of = [m for m in mutants if m.path.startswith(f"serve_app/{package}/") and suite in m.found]
        counts = Counter("killed" if m.killed(suite) else m.found[suite] for m in of)
        yield f"{package}: {len(of)} tried, " + ", ".join(f"{n} {name}" for name, n in counts.most_common())
    for m in mutants:
        if suite in m.found and not m.killed(suite):
            change = f"{''.join(m.before).strip()} -> {''.join(m.after).strip()}"
            yield f"{m.path}:{m.line} {m.operator}: {change} [{m.found}] {m.verdict}"


def read(path: Path) -> list[Mutant]:
    """Return what was written of a campaign."""
    return [Mutant(**json.loads(line)) for line in path.read_text().splitlines()]


def write(path: Path, mutants: Sequence[Mutant]) -> None:
    """Write a campaign down, at once."""
    rows: list[dict[str, Any]] = [asdict(mutant) for mutant in mutants]
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.rename(path)


def attempt(given: argparse.Namespace) -> None:
    """Try the mutants that a suite was not tried with, or all of its survivors again."""
    from bench.covered import Covered
    from bench.forked import Warm

    results = given.results.resolve()
    mutants, tree = read(results), given.tree.resolve()
    covered = Covered.read(tree, [path.resolve() for path in given.covered])
    elsewhere = renamed(given.drawn_in.resolve(), tree) if given.drawn_in else {}
    warm = Warm(tree)
    for mutant in mutants:
        tried = given.suite in mutant.found and not (given.again and not mutant.killed(given.suite))
        if tried or mutant.killed(given.unless) or mutant.path.split("/")[1] not in given.packages:
            continue
        path = elsewhere.get(mutant.path, mutant.path)
        mutant.found[given.suite] = found_by(warm, covered, mutant, path, given.budget_s)
        print(f"{mutant.path}:{mutant.line} {mutant.operator}: {mutant.found[given.suite]}", flush=True)
        write(results, mutants)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw mutants, or try those that were not tried; say what came of all."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("bench/results/mutants.jsonl"))
    parser.add_argument("--suite", default="today", help="under which what the tests find is written")
    verbs = parser.add_subparsers(dest="verb", required=True)
    draw = verbs.add_parser("draw")
    draw.add_argument("--tree", type=Path, required=True)
    draw.add_argument("--count", type=int, required=True)
    draw.add_argument("--seed", type=int, required=True)
    tries = verbs.add_parser("try")
    tries.add_argument("--tree", type=Path, required=True)
    tries.add_argument("--covered", type=Path, nargs="+", required=True)
    tries.add_argument("--budget-s", type=float, default=60.0, help="how many seconds of tests each mutant meets")
    tries.add_argument("--again", action="store_true", help="try survivors again")
    tries.add_argument("--unless", default="", help="leave out what this other suite kills")
    tries.add_argument("--packages", nargs="+", default=PACKAGES)
    tries.add_argument("--drawn-in", type=Path, help="the tree they were drawn in, where this is of another commit")
    verbs.add_parser("tell")
    given = parser.parse_args(arguments)
    if given.verb == "draw":
        write(given.results, list(drawn(given.tree.resolve(), given.count, given.seed)))
    elif given.verb == "try":
        attempt(given)
    print("\n".join(summary(read(given.results), given.suite)))


if __name__ == "__main__":
    main()
