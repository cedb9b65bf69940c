"""`serve-app up` from its first moment to its last: what clients see meanwhile, and what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from serve_app.engine.run_state import from_bytes
from tests.cluster.server import PATIENCE_S, Server, running, txt2img, wait_for

JOBS = 6
HANG_S = 30.0
NOBODY = "00000000-0000-0000-0000-000000000000"
ROUTES = (
    ("GET", "/queue"),
    ("GET", f"/history/{NOBODY}"),
    ("GET", "/view?filename=none.png"),
    ("GET", "/system_stats"),
    ("POST", "/prompt"),
)


class Place:
    """A directory, and the server that runs over it at the moment: each test goes on with what the one before left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server = Server(root)

    def start(self) -> Server:
        """Start the server again, once nothing is left of the one before."""
        self.server.close()
        self.server = Server(self.root)
        return self.server


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place whose server is at the first moment of its start."""
    place = Place(tmp_path_factory.mktemp("place"))
    yield place
    place.server.close()


class Poller(threading.Thread):
    """Asks one route over and over and notes the answers; a refused connection is none."""

    def __init__(self, url: str, method: str, path: str) -> None:
        super().__init__(daemon=True)
        self._url, self._method, self.path = url, method, path
        self._ended = threading.Event()
        self.statuses: list[int] = []
        self.wrong: list[str] = []
        self.start()

    def run(self) -> None:
        body = {"prompt": txt2img(1)} if self._method == "POST" else None
        with httpx.Client(base_url=self._url, timeout=HANG_S) as client:
            while not self._ended.wait(0.1):
                try:
                    self._note(client.request(self._method, self.path, json=body))
                except httpx.ConnectError:
                    continue
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))

    def _note(self, response: httpx.Response) -> None:
        self.statuses.append(response.status_code)
        if response.status_code == 503:
            complete = response.json().keys() == {"error", "detail", "status_code"}
            if not complete or int(response.headers.get("retry-after", 0)) < 1:
                self.wrong.append(response.text)

    def end(self) -> None:
        self._ended.set()
        self.join(2 * HANG_S)


def libraries(pid: int) -> set[str]:
    """Return the names of the packages whose libraries a process has loaded."""
    paths = [line.split(maxsplit=5)[5] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if ".so" in line]
    return {path.partition("site-packages/")[2].partition("/")[0] for path in paths}


def test_until_a_job_can_run_the_server_refuses_or_answers_503(place: Place):
    starting = place.server
    pollers = [Poller(starting.url, method, path) for method, path in ROUTES]
    wait_for(lambda: 200 in pollers[0].statuses, "an answer")
    for poller in pollers:
        poller.end()
        answer = 404 if poller.path.startswith("/view") else 200
        before = poller.statuses.index(answer) if answer in poller.statuses else len(poller.statuses)
        # One that waits for the start, and so is answered once, would see no 503.
        assert set(poller.statuses[:before]) == {503}, f"{poller.path}: {poller.statuses}"
        assert set(poller.statuses[before:]) <= {answer}, f"{poller.path}: {poller.statuses}"
        assert poller.wrong == []
    job_id = starting.submit(txt2img(2))
    assert starting.finished(job_id)["status"]["completed"]


def test_each_process_has_loaded_only_what_it_needs(place: Place):
    server = place.server
    assert "torch" in libraries(server.processes.pid("replica"))
    assert not libraries(server.processes.pid("ingress")) & {"torch", "scipy", "aiohttp"}
    assert not libraries(server.processes.pid("scheduler")) & {"torch", "scipy", "aiohttp", "PIL", "numpy"}
    assert libraries(server.up.pid) == {"", "psutil"}
    children = psutil.Process(server.up.pid).children()
    [driver] = [child.pid for child in children if "serve_app.deployments.process.serving" in child.cmdline()]
    wait_for(lambda: libraries(driver) == {""}, "the driver to leave")


def test_jobs_that_sigkill_interrupts_finish_after_the_next_start_and_equal_ones_are_cached(place: Place):
    server = place.server
    # It takes longer than results.after_s.
    long = txt2img(77, steps=150, side=128, prefix="long")
    before = server.finished(server.submit(long))["outputs"]
    wait_for(lambda: list(place.root.glob("work/results/*/*")), "its result to be stored")
    jobs = [server.submit(txt2img(seed, steps=60, side=128, prefix="killed/image")) for seed in range(JOBS)]
    wait_for(lambda: server.get("/queue")["running"], "a job that runs")

    os.kill(server.up.pid, signal.SIGKILL)

    assert server.up.wait(PATIENCE_S) == -signal.SIGKILL
    wait_for(lambda: not server.processes.found(), "the end of every process")
    with pytest.raises(httpx.ConnectError):
        server.http.get("/queue")
    server = place.start()
    server.wait_until_ready()
    names = set()
    for job_id in jobs:
        entry = server.finished(job_id)
        assert entry["status"]["status_str"] == "success"
        names |= {image["filename"] for image in entry["outputs"]["6"]["images"]}
    assert names == server.saved("killed")
    assert len(names) == len(jobs)
    again = server.submit(long)
    assert server.finished(again)["outputs"] == before
    told = server.get(f"/jobs/{again}/events")["events"]
    assert "executing" not in {event["kind"] for event in told}
    assert {node for event in told if event["kind"] == "cached" for node in event["data"]["nodes"]} == set(long)


@pytest.mark.long
def test_the_older_of_two_servers_works_again_when_the_newer_has_gone_and_jobs_of_both_are_there(place: Place):
    older = place.server
    first = older.submit(txt2img(11))
    older.finished(first)
    with running(place.root) as newer:
        wait_for(lambda: not older.answers(), "the older server to notice")
        second = newer.submit(txt2img(12))
        newer.finished(second)
        assert not older.answers()
    wait_for(older.answers, "the older server to work again")
    older.finished(older.submit(txt2img(13)))
    assert {first, second} <= older.get("/history").keys()


def test_jobs_are_there_again_though_the_databases_file_was_deleted(place: Place):
    server = place.server
    before = server.get("/history").keys()
    (place.root / "state" / "jobs.sqlite").unlink()
    job_id = server.submit(txt2img(14))
    server.kill("scheduler")
    server.finished(job_id)
    assert {job_id, *before} <= server.get("/history").keys()


def test_a_server_that_is_stopped_keeps_every_step_of_a_run_ends_well_and_leaves_no_process(place: Place):
    place.server.wait_until_ready()
    job_id = place.server.submit(txt2img(15, steps=10_000))

    def steps() -> int:
        events = place.server.get(f"/jobs/{job_id}/events")["events"]
        return max((event["data"]["value"] for event in events if event["kind"] == "progress"), default=0)

    wait_for(lambda: steps() > 20, "a run under way")
    done = steps()
    place.server.up.send_signal(signal.SIGTERM)
    assert place.server.up.wait(PATIENCE_S) == 0
    # The sampler needs one answer of its network for each step.
    parts = sorted(place.root.glob("work/run-states/*/*.safetensors"))
    assert len(from_bytes([part.read_bytes() for part in parts])) >= done
    wait_for(lambda: not place.server.processes.found(), "the end of the reaper, the last one")
    assert "Traceback" not in place.server.log.read_text()


def test_a_stop_while_starting_is_obeyed_too(place: Place):
    starting = place.start()
    wait_for(lambda: starting.processes.found("ray::ServeController"), "Serve's controller")
    starting.up.send_signal(signal.SIGTERM)
    assert starting.up.wait(PATIENCE_S) == 0
    wait_for(lambda: not starting.processes.found(), "the end of the reaper, the last one")


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "serve_app.cli", "up", "--port", port]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert list(tmp_path.glob("output/*")) == []
