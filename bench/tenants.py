"""What tenants add to a submission, in one process without sockets: `python -m bench.tenants`.

The same scheduler over a database in memory is submitted to through two applications, one that asks who comes in and
one that does not, in pairs whose order is drawn. Processor time is of all threads; at the end of a round the audit log
is written to the database once, which counts for the application that has one. Exits with 1 if the median ratio of
rounds is over TARGET.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import quantiles
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Scope

from bench.series import Ratio, Series, ratio
from serve_app import log
from serve_app.api.app import create_app
from serve_app.api.auth.authentication import Authenticator
from serve_app.api.operator.audit import AuditLog
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from serve_app.store.page.userdata import UserData
from serve_app.store.tenants.api_keys import AddKey, minted
from tests.unit.api.conftest import EXAMPLE
from tests.unit.api.scripted_replica import ScriptedReplica, scripted

NAME = "tenants"
TARGET = "<= 1.1"
MODELS = ["sd15.safetensors"]
OFF, ON = "tenants off", "tenants on"
CPU, P50, P99 = "processor time of a submission", "p50 of a submission", "p99 of a submission"
BODY = json.dumps(EXAMPLE["simple_txt2img"]["value"]).encode()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tenants", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=200, help="of submissions in a round (default: %(default)s)")
    arguments = parser.parse_args()
    with open(os.devnull, "w") as nowhere:
        _log_to(nowhere)
        series, ratios = asyncio.run(measure(arguments.rounds, arguments.pairs))
    for each in series:
        print(f"{each.case}, {each.contender}: {each.median:.3g} {each.unit}")
    for found in ratios:
        spread = f"rounds {min(found.values):.3f} to {max(found.values):.3f}"
        print(f"{found.what}: {found.median:.3f} (target {found.target}; {spread})")
    return 1 if any(found.met is False for found in ratios) else 0


async def measure(rounds: int, pairs: int) -> tuple[list[Series], list[Ratio]]:
    """Return what a submission takes without tenants and with them, round by round."""
    figures: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with scripted() as replica:
            service = _service(Path(folder), replica)
            key, text = minted("studio", "bench", ("submit", "read"), None)
            await service.query(AddKey(key))
            audit = AuditLog(lambda: service, 1.0, every_s=float("inf"))
            apps: dict[str, ASGIApp] = {
                OFF: create_app(service),
                ON: create_app(service, authenticator=Authenticator(lambda: service, audit)),
            }
            for turn in range(rounds + 1):
                for case, taken in (await _round(apps, text, pairs, audit)).items():
                    if turn > 0:
                        figures.setdefault(case, []).append(taken)
                await service.withdraw()
                await service.forget()
    series = {case: Series(NAME, case[0], case[1], "ms", values) for case, values in figures.items()}
    return [*series.values()], [
        ratio(NAME, f"{what}, on over off", series[what, ON], series[what, OFF], TARGET)
        for what in dict.fromkeys(what for what, _ in series)
        if what != P50
    ]


async def _round(apps: Mapping[str, ASGIApp], key: str, pairs: int, audit: AuditLog) -> dict[tuple[str, str], float]:
    """Return the milliseconds of a submission: of processor time, the median that passed, the 99th percentile."""
    cpu_s = dict.fromkeys(apps, 0.0)
    took_s: dict[str, list[float]] = {state: [] for state in apps}
    for _ in range(pairs):
        for state in random.sample(list(apps), len(apps)):
            cpu_began_s, began_s = time.process_time(), time.perf_counter()
            await _submit(apps[state], key)
            took_s[state].append(time.perf_counter() - began_s)
            cpu_s[state] += time.process_time() - cpu_began_s
    cpu_began_s = time.process_time()
    await audit.close()
    cpu_s[ON] += time.process_time() - cpu_began_s
    found: dict[tuple[str, str], float] = {}
    for state in apps:
        hundredths = quantiles(took_s[state], n=100)
        found[CPU, state] = cpu_s[state] / pairs * 1e3
        found[P50, state], found[P99, state] = hundredths[49] * 1e3, hundredths[98] * 1e3
    return found


def _service(folder: Path, replica: ScriptedReplica) -> Service:
    volume = Volume({"input": folder / "input", "output": folder / "output", "temp": folder / "temp"})
    limits = Limits(body_bytes=10_000, upload_bytes=10_000)
    return Service(replica.scheduler.client, volume, lambda _: MODELS, limits, user_data=UserData(folder / "user"))


async def _submit(app: ASGIApp, key: str) -> None:
    """Send a submission as a server would hand it on. Errors: RuntimeError unless it is accepted."""
    told: list[Message] = []
    body = iter([{"type": "http.request", "body": BODY, "more_body": False}])

    async def receive() -> Message:
        return next(body)

    async def send(message: Message) -> None:
        told.append(message)

    await app(_scope(key), receive, send)
    if told[0]["status"] != 200:
        raise RuntimeError(f"a submission is answered {told[0]['status']}: {told[1]['body'].decode()[:500]}")


def _scope(key: str) -> Scope:
    headers = {
        "host": "127.0.0.1:8000",
        "user-agent": "bench",
        "accept": "*/*",
        "content-type": "application/json",
        "content-length": str(len(BODY)),
        "authorization": f"Bearer {key}",
    }
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/api/prompt",
        "raw_path": b"/api/prompt",
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    return scope


def _log_to(file: TextIO) -> None:
    """Have lines made and written as a server does."""
    handler = logging.StreamHandler(file)
    handler.setFormatter(log.TextFormatter())
    logging.getLogger("serve_app").addHandler(handler)
    log.configure()


if __name__ == "__main__":
    sys.exit(main())
