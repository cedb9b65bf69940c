"""Builds the image without Docker and runs it as compose.yaml has it: `make image`, as root on a Debian machine.

Of Debian: podman, podman-compose, runc, catatonit, netavark and debootstrap, which makes the base, a Debian 12 with its
Python 3.11. What the image installs comes from PyPI; --build passes `podman build` what that takes here, such as
--build=--volume=DIR:DIR:ro and --build=--build-arg=TORCH_INDEX=URL.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.cluster.server import Application, provide_checkpoint, txt2img, wait_for

ROOT = Path(__file__).parents[2]
BASE = "localhost/serve-app-base"
CONTAINER = "comfyui"
GLOBAL = ["--runtime=runc", "--cgroup-manager=cgroupfs"]
"""What podman needs where systemd is not the init, as in CI."""
FILL = r"""
import os, re, numpy, psutil
os.environ.update(RAY_AUTH_MODE="token", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
import ray
commands = " ".join(word for process in psutil.process_iter() for word in process.cmdline())
ray.init(re.search(r"--gcs-address=(\d\S+)", commands)[1], log_to_driver=False, logging_level="ERROR")
size = int(ray.cluster_resources()["object_store_memory"])
piece = numpy.ones(size // 10, dtype=numpy.uint8)
held = [ray.put(piece) for _ in range(9)]
shared = os.statvfs("/dev/shm")
print(size, (shared.f_blocks - shared.f_bfree) * shared.f_frsize, sum(len(ray.get(each)) for each in held))
"""
"""Fills nine tenths of Ray's object store. Prints its size, the bytes of shared memory that are used, and those put."""


def main() -> None:
    """Build a target, print its layers, and run it unless it is `cuda`."""
    parser = argparse.ArgumentParser(prog="python -m tests.image", description=__doc__)
    parser.add_argument("--target", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--base", default=BASE, help="an image with a Python 3.11 (default: made by debootstrap)")
    parser.add_argument("--build", action="append", default=[], help="an argument for `podman build`")
    options = parser.parse_args()
    if options.base == BASE:
        make_base()
    image = build(options.target, options.base, options.build)
    for layer in layers(image):
        print(f"layer {layer['size'] / 1e6:8.1f} MB  {layer['CreatedBy'][:100]}")
    if options.target == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder))


def make_base() -> None:
    """Make the base by debootstrap, unless it is there."""
    if _podman("image", "exists", BASE, check=False).returncode == 0:
        return
    with tempfile.TemporaryDirectory() as folder:
        included = "--include=python3,python3-venv,ca-certificates"
        _run(["debootstrap", "--variant=minbase", included, "bookworm", folder])
        _run(["chroot", folder, "sh", "-c", "rm -rf /var/cache/apt/* /var/lib/apt/lists/*"])
        with subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE) as packed:
            _run(["podman", *GLOBAL, "import", "-", BASE], stdin=packed.stdout)


def build(target: str, base: str, arguments: Sequence[str]) -> str:
    """Build a target of the Dockerfile. Return the image's name."""
    image = f"localhost/serve-app-{target}:0.1.0"
    # A builder that may not raise its limits could not start with podman's own.
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    ulimits = [
        f"--ulimit={name}={resource.getrlimit(kind)[1]}:{resource.getrlimit(kind)[1]}" for name, kind in limits.items()
    ]
    begun = time.monotonic()
    _podman(
        *("build", "--format=docker", "--layers", "--network=host", f"--target={target}", f"--tag={image}"),
        *(f"--build-arg=PYTHON_IMAGE={base}", *ulimits, *arguments, str(ROOT)),
        stdout=None,
    )
    print(f"built {image} in {time.monotonic() - begun:.0f} s")
    return image


def layers(image: str) -> list[dict[str, Any]]:
    """Return an image's layers that have a size, the last first."""
    found: list[dict[str, Any]] = json.loads(_podman("history", "--format=json", image).stdout)
    return [layer for layer in found if layer["size"]]


def run(folder: Path) -> None:
    """Start the image by compose.yaml over a folder, make a picture, stop it, fill its object store, stop it again."""
    (folder / "models" / "checkpoints").mkdir(parents=True)
    provide_checkpoint(folder)
    output = folder / "output"
    output.mkdir()
    _run(["chmod", "-R", "a+rX", str(folder)])
    os.chown(output, 1000, 1000)
    begun = time.monotonic()
    with started(folder):
        server = Application(8188)
        wait_for(lambda: _running() and server.answers(), "the server to answer")
        print(f"answers after {time.monotonic() - begun:.1f} s")
        _check_restrictions()
        [picture] = server.finished(server.submit(txt2img(1)))["outputs"]["6"]["images"]
        answer = server.http.get("/view", params={"filename": picture["filename"], "type": "output"})
        assert answer.content[:4] == b"\x89PNG"
        mode = (output / picture["filename"]).stat().st_mode
        print(f"picture after {time.monotonic() - begun:.1f} s: {len(answer.content)} bytes, {stat.filemode(mode)}")
        assert stat.S_IMODE(mode) == 0o644
        # Without systemd podman runs no health check by itself.
        _podman("healthcheck", "run", CONTAINER)
        stop("with an empty object store")
        _podman("start", CONTAINER)
        wait_for(lambda: _running() and server.answers(), "the server to answer again")
        size, shared, put = map(int, _exec("python", "-c", FILL).split())
        print(f"object store of {size / 1e9:.2f} GB: {put / 1e9:.2f} GB put, {shared / 1e9:.2f} GB of shared memory")
        assert size * 0.89 < put <= shared, "the object store is not in shared memory"
        stop("with a full object store")


def stop(what: str) -> None:
    """Stop the container in good order, and print how long it took: its processes' end, and that of `podman stop`."""
    begun_s = time.time()
    _podman("stop", CONTAINER)
    took_s = time.time() - begun_s
    state = json.loads(_podman("inspect", "--format={{json .State}}", CONTAINER).stdout)
    # Without the nanoseconds, which Python does not read.
    ended_s = datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", state["FinishedAt"])).timestamp()
    print(
        f"stopped {what}: its processes after {ended_s - begun_s:.1f} s, `podman stop` after {took_s:.1f} s, "
        f"status {state['ExitCode']}"
    )
    assert state["ExitCode"] in (0, 143), "it did not end by itself"
    assert not state["OOMKilled"]


@contextlib.contextmanager
def started(folder: Path) -> Iterator[None]:
    """Start what compose.yaml describes, and take it away with its volumes."""
    compose = ["podman-compose", f"--podman-args={' '.join(GLOBAL)}", "--file", str(ROOT / "compose.yaml")]
    environment = {**os.environ, "MODELS": str(folder / "models"), "OUTPUT": str(folder / "output")}
    try:
        _run([*compose, "up", "--detach", "--no-build"], env=environment)
        yield
    except BaseException:
        print(_podman("logs", "--tail=100", CONTAINER, check=False, stderr=subprocess.STDOUT).stdout)
        raise
    finally:
        _run([*compose, "down", "--volumes", "--timeout=5"], env=environment)


def _check_restrictions() -> None:
    """Check that the container has a user without privileges and writes nowhere but to mounts."""
    assert _exec("id", "-u").strip() == "1000"
    assert "CapEff:\t0000000000000000" in _exec("cat", "/proc/1/status")
    for path in ("/app/new", "/opt/serve-app/new", "/app/models/new"):
        assert _podman("exec", CONTAINER, "touch", path, check=False).returncode != 0, path


def _running() -> bool:
    """Return True. Errors: CalledProcessError, AssertionError if the container is not there or has ended."""
    assert _podman("inspect", "--format={{.State.Running}}", CONTAINER).stdout.strip() == "true", "it has ended"
    return True


def _exec(*command: str) -> str:
    return str(_podman("exec", CONTAINER, *command).stdout)


def _podman(*arguments: str, stdout: int | None = subprocess.PIPE, **options: Any) -> subprocess.CompletedProcess[str]:
    return _run(["podman", *GLOBAL, *arguments], stdout=stdout, **options)


def _run(command: Sequence[str], *, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, text=True, **options)


if __name__ == "__main__":
    main()
