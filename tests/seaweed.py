"""A SeaweedFS of this machine, started for the tests: a real S3-compatible store with real signatures."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

ACCESS, SECRET = "testkey", "testsecret"
STARTING_S = 60.0
ADMIN = {
    "name": "admin",
    "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
}
# Each port that is named also opens the one 10000 above it; any other is closed, so that two servers can run at once.
NAMES = ("-master.port", "-volume.port", "-filer.port", "-s3.port")
# With those above all are below 32768: from there on Linux gives ports to what goes out, also after one was found free.
PORTS = range(20_000, 22_700)


class Seaweed:
    """One server. Ending in good order takes long, so it is always killed; what it has acknowledged outlives that.

    address: where it listens. within: what its command is prefixed with.
    """

    def __init__(self, root: Path, address: str = "127.0.0.1", within: Sequence[str] = ()) -> None:
        self._root, self._address, self._within = root, address, list(within)
        (root / "s3.json").write_text(json.dumps({"identities": [ADMIN]}))
        (root / "data").mkdir()
        self._ports = _free_ports(len(NAMES))
        self.port = self._ports[-1]
        self.endpoint = f"http://{address}:{self.port}"
        self.start()

    @staticmethod
    def program() -> str | None:
        beside = Path(sysconfig.get_path("scripts")) / "weed"
        return str(beside) if beside.is_file() else shutil.which("weed")

    def start(self) -> None:
        command = [
            *self._within,
            *(self.program() or "weed", "-logtostderr", "server", f"-dir={self._root}/data"),
            *(f"-ip={self._address}", f"-ip.bind={self._address}", "-filer", "-s3", f"-s3.config={self._root}/s3.json"),
            *("-volume.max=100", "-master.volumeSizeLimitMB=128", "-volume.preStopSeconds=1"),
            *("-s3.autoCreateBucket=false", "-s3.allowDeleteBucketNotEmpty=false", "-s3.iam=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *(f"{name}={port}" for name, port in zip(NAMES, self._ports, strict=True)),
        ]
        environment = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        with (self._root / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._root, env=environment)
        deadline = time.monotonic() + STARTING_S
        while not self._answers():
            assert self._process.poll() is None, (self._root / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (self._root / "log").read_text()[-2000:]
            time.sleep(0.1)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            return httpx.get(self.endpoint).status_code == 403
        except httpx.TransportError:
            return False


def _free_ports(count: int) -> Sequence[int]:
    found: list[int] = []
    while len(found) < count:
        port = random.choice(PORTS)
        if port not in found and _free(port) and _free(port + 10000):
            found.append(port)
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
