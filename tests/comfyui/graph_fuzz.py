"""Random workflows through a real ComfyUI and through this server; what their answers differ in, made small.

    python -m tests.comfyui.graph_fuzz COMFYUI_DIRECTORY COMFYUI_PYTHON --graphs 500 --seed 1

Starts both over the same small models and images, on loopback, and ends them. --urls takes two that run already, which
have tests/comfyui/fuzz_pack among their packs. Equal seeds give equal graphs, so a difference is made again by
`--seed S --first N --graphs 1`. Writes the differences, each with the smallest graph that still shows it, as lines of
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.comfyui.graph_answers import Answer, Difference, Server, differences, unexplained
from tests.comfyui.graph_folders import prepare
from tests.comfyui.pools import free_port
from tests.comfyui.random_graphs import Generator, Graph, inputs_of, kind_of

REPOSITORY = Path(__file__).resolve().parents[2]
START_S = 300.0
DATA_BYTES = 6 << 30
"""What ComfyUI may have; this server bounds its own values."""
TRIALS = 40
"""How many smaller graphs are tried for a difference."""
KEPT_CHARACTERS = 6000
WRONG = 0.4
"""Which part of the graphs is slightly wrong."""


class Fuzz:
    """Both servers, and what has been found."""

    def __init__(self, theirs: Server, ours: Server, info: Mapping[str, Any], trials: int) -> None:
        self._theirs, self._ours, self._info, self.trials = theirs, ours, info, trials
        self._again = 0

    async def compare(self, graph: Graph) -> tuple[Answer, list[Difference]]:
        """Return ComfyUI's answer to a graph, and what ours differs in."""
        asked = [asyncio.create_task(server.answer(graph)) for server in (self._theirs, self._ours)]
        await asyncio.wait(asked)
        theirs, ours = (answer.result() for answer in asked)
        return theirs, list(differences(theirs, ours, graph))

    async def shrunk(self, graph: Graph, what: str) -> tuple[Graph, Difference]:
        """Return the smallest graph found that still shows a difference of a kind, and that difference."""
        best: tuple[Graph, Difference] | None = None
        tried = 0
        progress = True
        while progress and tried < self.trials:
            progress = False
            for smaller in self._smaller(graph):
                tried += 1
                if tried > self.trials:
                    break
                _, found = await self.compare(self._renamed(smaller))
                if (same := next((d for d in found if d.what == what), None)) is not None:
                    graph, best, progress = smaller, (smaller, same), True
                    break
        if best is None:
            _, found = await self.compare(self._renamed(graph))
            again = next((d for d in found if d.what == what), Difference(f"{what} (not again)", None, None))
            best = (graph, again)
        return best

    def _renamed(self, graph: Graph) -> Graph:
        """Return the graph with other names for its files, so that no earlier one counts."""
        self._again += 1
        changed = copy.deepcopy(graph)
        for node in changed.values():
            inputs = node.get("inputs", {})
            if isinstance(prefix := inputs.get("filename_prefix"), str):
                inputs["filename_prefix"] = f"again{self._again}/{prefix.rsplit('/', 1)[-1]}"
        return changed

    def _smaller(self, graph: Graph) -> list[Graph]:
        used = {str(v[0]) for n in graph.values() for v in n["inputs"].values() if isinstance(v, list) and v}
        found = [{i: n for i, n in graph.items() if i != node_id} for node_id in graph if node_id not in used]
        for node_id, node in graph.items():
            declared = self._info.get(node.get("class_type", ""))
            if declared is None:
                continue
            optional = dict(inputs_of(declared, "optional"))
            found += [_without(graph, node_id, name) for name in node["inputs"] if name in optional]
            for name, (kind, options) in ((n, kind_of(d)) for n, d in inputs_of(declared)):
                value = node["inputs"].get(name)
                if "default" in options and value != options["default"] and not isinstance(options["default"], list):
                    if kind in ("INT", "FLOAT") and options["default"] > 128:
                        continue
                    found.append(_without(graph, node_id, name, options["default"]))
        return [smaller for smaller in found if smaller]


def _without(graph: Graph, node_id: str, name: str, *instead: Any) -> Graph:
    changed = copy.deepcopy(graph)
    changed[node_id]["inputs"].pop(name, None)
    if instead:
        changed[node_id]["inputs"][name] = instead[0]
    return changed


@asynccontextmanager
async def server(
    command: list[str],
    cwd: Path,
    url: str,
    log: Path,
    environment: Mapping[str, str],
    bound: Callable[[], None] | None = None,
) -> AsyncIterator[str]:
    """Run a server until this ends; it is ready once it lists its classes."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cwd, env={**os.environ, **environment}, stdout=out, stderr=out, preexec_fn=bound
        )
        try:
            deadline = time.monotonic() + START_S
            async with aiohttp.ClientSession() as session:
                while time.monotonic() < deadline:
                    try:
                        async with session.get(f"{url}/api/object_info/FuzzShow") as response:
                            if response.status == 200 and await response.json():
                                break
                    except aiohttp.ClientError:
                        pass
                    if process.returncode is not None:
                        raise RuntimeError(f"{command} has ended: {log.read_text()[-2000:]}")
                    await asyncio.sleep(0.5)
            yield url
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _bounded() -> None:
    # A graph may ask a node for more than the machine has; its server is to fail then, and no other process.
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))


@asynccontextmanager
async def both(directory: Path, python: Path, root: Path) -> AsyncIterator[tuple[str, str]]:
    """Run a ComfyUI and this server over folders under `root`; yield their addresses."""
    homes = [prepare(root / name) for name in ("theirs", "ours")]
    ports = [free_port(), free_port()]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    comfyui = [str(python), "main.py", "--cpu", "--port", str(ports[0]), "--base-directory", str(homes[0])]
    comfyui += ["--disable-api-nodes", "--database-url", f"sqlite:///{root}/theirs.sqlite"]
    own = [sys.executable, "-m", "serve_app.cli", "up", "--port", str(ports[1]), "--root-dialect", "comfy"]
    for name in ("models", "input", "output", "temp", "user"):
        own += [f"--{name}-dir", str(homes[1] / name)]
    own += ["--custom-nodes-dir", str(homes[1] / "custom_nodes"), "--database-url", f"sqlite:///{root}/ours.sqlite"]
    threads = {"OMP_NUM_THREADS": "1"}
    async with (
        server(comfyui, directory, urls[0], root / "theirs.log", {**threads, "PYTHONPATH": ""}, _bounded),
        server(own, REPOSITORY, urls[1], root / "ours.log", {**threads, "PYTHONPATH": str(REPOSITORY)}),
    ):
        yield urls[0], urls[1]


class Found:
    """What a run counts and writes."""

    def __init__(self, path: Path, seed: int, kept: Path | None) -> None:
        self._path, self._seed, self._kept = path, seed, kept
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    def write(self, number: int, about: str, difference: Difference, **more: Any) -> None:
        """Add one difference to the file."""
        line = {"number": number, "seed": self._seed, "about": about, "what": difference.what}
        line |= {"theirs": difference.theirs, "ours": difference.ours, **more}
        with self._path.open("a") as out:
            out.write(json.dumps(line, default=str) + "\n")

    def keep(self, graph: Graph, answer: Answer) -> None:
        """Keep ComfyUI's answer to a graph for the tests, if both are small and need no model."""
        entry = {name: answer.entry[name] for name in ("outputs", "status", "meta") if answer.entry}
        line = json.dumps(
            _without_tracebacks({"graph": graph, "status": answer.status, "body": answer.body, "entry": entry})
        )
        models = any("Loader" in node.get("class_type", "") for node in graph.values())
        if self._kept is not None and not models and len(line) < KEPT_CHARACTERS:
            with self._kept.open("a") as out:
                out.write(line + "\n")

    def show(self) -> None:
        """Print the counts."""
        print(json.dumps({"seed": self._seed, **dict(sorted(self.counts.items()))}, indent=1), flush=True)
        for what, count in self.kinds.most_common():
            print(f"{count:5}  {what}", flush=True)


def _without_tracebacks(value: Any) -> Any:
    """Return an answer without the places in its server's code."""
    if isinstance(value, dict):
        return {name: [] if name == "traceback" else _without_tracebacks(member) for name, member in value.items()}
    return [_without_tracebacks(item) for item in value] if isinstance(value, list) else value


async def run(urls: tuple[str, str], numbers: Iterator[int], seed: int, found: Found, trials: int) -> bool:
    """Compare graphs of a seed; return whether that ended early, since a server has gone."""
    # A server may close an idle connection in the moment in which a request begins on it.
    fresh = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=fresh, timeout=aiohttp.ClientTimeout(300)) as session:
        theirs, ours = (Server(url, session) for url in urls)
        known = await asyncio.gather(theirs.object_info(), ours.object_info())
        info = {name: declared for name, declared in known[0].items() if name in known[1]}
        fuzz, generator = Fuzz(theirs, ours, info, trials), Generator(info, seed)
        for number in numbers:
            wrong = number % 10 < WRONG * 10
            graph, about = generator.wrong(number) if wrong else generator.graph(number)
            try:
                await one(fuzz, found, number, graph, about, wrong)
            except TimeoutError:
                found.counts["no answer in time"] += 1
                await asyncio.gather(theirs.abandon(), ours.abandon())
            except (OSError, aiohttp.ClientError) as error:
                found.counts["a server has gone"] += 1
                found.write(number, about, Difference(f"no answer: {error!r}", None, None), graph=graph)
                return True
    return False


async def one(fuzz: Fuzz, found: Found, number: int, graph: Graph, about: str, wrong: bool) -> None:
    """Compare one graph, and count and shrink what it differs in."""
    answer, differ = await fuzz.compare(graph)
    group = "wrong" if wrong else "right"
    reasons, differ = unexplained(differ, graph)
    found.counts.update(f"deliberate: {reason}" for reason in reasons)
    ended = answer.entry.get("status", {}).get("status_str", f"refused {answer.status}")
    found.counts[f"{group}, {ended}"] += 1
    found.counts[f"{group}, {'differs' if differ else 'agrees'}"] += 1
    for difference in {d.what: d for d in differ}.values():
        found.kinds[difference.what] += 1
        smallest = (graph, difference)
        if found.kinds[difference.what] == 1 and fuzz.trials:
            smallest = await fuzz.shrunk(graph, difference.what)
        found.write(number, about, smallest[1], graph=smallest[0])
    if not differ and not reasons:
        found.keep(graph, answer)


async def main(arguments: argparse.Namespace) -> None:
    """Run the fuzz over two servers, started here unless they are given, and again when one of them is gone."""
    found = Found(arguments.found, arguments.seed, arguments.keep)
    numbers = iter(range(arguments.first, arguments.first + arguments.graphs))
    try:
        if arguments.urls:
            await run(tuple(arguments.urls), numbers, arguments.seed, found, arguments.trials)
            return
        again = True
        while again:
            with tempfile.TemporaryDirectory(prefix="graph-fuzz-") as root:
                async with both(arguments.directory.absolute(), arguments.python.absolute(), Path(root)) as urls:
                    again = await run(urls, numbers, arguments.seed, found, arguments.trials)
    finally:
        found.show()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("python", type=Path, nargs="?")
    parser.add_argument("--graphs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the number of the first graph")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=TRIALS, help="how many smaller graphs are tried")
    parser.add_argument("--urls", nargs=2, help="ComfyUI's and ours, which run already")
    parser.add_argument("--found", type=Path, default=Path("graph-differences.jsonl"))
    parser.add_argument("--keep", type=Path, help="where ComfyUI's answers to small graphs are kept for the tests")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parsed()))
