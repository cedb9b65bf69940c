"""What a running server shows to others: to the network nothing, to the machine's other users nothing they can read,
and to the collector of traces that it is given how each job went.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.cluster.collector import CLIENTS_SPAN, TRACE, Collector, collecting, drawn
from tests.cluster.server import PATIENCE_S, Server, configure, txt2img, wait_for


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Server]:
    """A server that has run a job, of a user with an open umask and a home at its root, as Ray starts by default."""
    before = os.umask(0o022)
    root = tmp_path_factory.mktemp("server")
    configure(root, {"traces": {"endpoint": collector.endpoint}})
    server = Server(root, environment={"HOME": str(root), "RAY_AUTH_MODE": "token"}, arguments=["--dashboard"])
    try:
        server.wait_until_ready()
        assert server.finished(server.submit(txt2img(1)))["status"]["completed"]
        yield server
    finally:
        server.close()
        os.umask(before)


def test_every_socket_listens_on_this_machine_alone(served: Server):
    listening = {
        (process.name(), connection.laddr.ip)
        for process in served.processes.found()
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN or (connection.type.name == "SOCK_DGRAM" and not connection.raddr)
    }
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert [(name, ip) for name, ip in listening if not _is_loopback(ip)] == []


def test_what_the_server_writes_is_its_users_alone(served: Server):
    named = [served.root / "state" / "jobs.sqlite", served.root / ".ray" / "auth_token"]
    written = [*named, *served.root.glob("output/*.png"), *_logs(Path(served.processes.environment["RAY_TMPDIR"]))]
    assert len(written) > 10
    written += [served.root / folder for folder in ("state", "input", "output", "temp", "user")]
    open_to_others = [path for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert open_to_others == []


def test_rays_dashboard_asks_for_the_token(served: Server):
    [dashboard] = re.findall(r"^dashboard: (\S+)$", served.log.read_text(), re.MULTILINE)
    token = (served.root / ".ray" / "auth_token").read_text()
    path = f"{dashboard}/api/serve/applications/"
    assert httpx.get(path, timeout=PATIENCE_S).status_code == 401
    assert httpx.get(path, headers={"Authorization": f"Bearer {token}"}, timeout=PATIENCE_S).status_code == 200


def test_a_job_is_one_trace_from_its_request_to_its_file_within_the_clients_own(served: Server, collector: Collector):
    headers = {"traceparent": f"00-{TRACE}-{CLIENTS_SPAN}-01"}
    answer = served.http.post("/prompt", json={"prompt": txt2img(1, steps=3)}, headers=headers)
    served.finished(answer.json()["prompt_id"])

    def whole() -> dict[str, list[tuple[str, Span]]] | None:
        found: dict[str, list[tuple[str, Span]]] = {}
        for service, span in collector.spans:
            if span.trace_id.hex() == TRACE:
                found.setdefault(span.name, []).append((service, span))
        return found if found.keys() >= {"POST", "wait", "job", "task", "node", "forward", "store"} else None

    spans = wait_for(whole, "all spans of the job")
    [(ingress, request)], [(scheduler, job)] = spans["POST"], spans["job"]
    assert (ingress, scheduler) == ("serve-app-ingress", "serve-app-scheduler")
    assert request.parent_span_id.hex() == CLIENTS_SPAN
    assert {span.parent_span_id for name in ("wait", "job", "task") for _, span in spans[name]} == {request.span_id}
    [(replica, task)] = spans["task"]
    assert replica == "serve-app-replica"
    parts = [span for name in ("node", "forward", "store") for _, span in spans[name]]
    assert {span.parent_span_id for span in parts} == {task.span_id}
    assert len(spans["forward"]) == 3
    assert job.start_time_unix_nano <= min(span.start_time_unix_nano for span in parts)
    assert max(span.end_time_unix_nano for span in parts) <= job.end_time_unix_nano
    print("\n" + drawn([pair for pairs in spans.values() for pair in pairs]))


def _is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    # An IPv6 socket that is bound to an IPv4 address.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _logs(ray: Path) -> list[Path]:
    return [path for path in ray.glob("ray/session_2*/logs/**/*") if path.is_file()]
