"""A job's trace, as a collector gets it from the processes of a real server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.cluster.server import Server, configure, provide_checkpoint, running, txt2img, wait_for

TRACE, CLIENTS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes spans over OTLP on a port of its own. spans: (service, span) of all that came."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        super().__init__(("127.0.0.1", 0), _Taking)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class _Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            [service] = [one.value.string_value for one in of_resource.resource.attributes if one.key == "service.name"]
            self.server.spans += [(service, span) for scope in of_resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def server(tmp_path: Path, collector: Collector) -> Iterator[Server]:
    provide_checkpoint(tmp_path)
    configure(tmp_path, {"traces": {"endpoint": collector.endpoint}})
    with running(tmp_path) as found:
        yield found


def test_a_job_is_one_trace_from_its_request_to_its_file_within_the_clients_own(server: Server, collector: Collector):
    headers = {"traceparent": f"00-{TRACE}-{CLIENTS_SPAN}-01"}
    answer = server.http.post("/prompt", json={"prompt": txt2img(1, steps=3)}, headers=headers)
    server.finished(answer.json()["prompt_id"])

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


def drawn(spans: list[tuple[str, Span]]) -> str:
    """Return a trace as lines, each span below its parent, with when it began and how long it took."""
    first = min(span.start_time_unix_nano for _, span in spans)
    below: dict[bytes, list[tuple[str, Span]]] = {}
    for service, span in sorted(spans, key=lambda pair: pair[1].start_time_unix_nano):
        below.setdefault(span.parent_span_id, []).append((service, span))

    def lines(parent: bytes, depth: int) -> Iterator[str]:
        for service, span in below.get(parent, []):
            began_ms = (span.start_time_unix_nano - first) / 1e6
            took_ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
            about = ", ".join(
                f"{each.key}={each.value.string_value or each.value.int_value}" for each in span.attributes
            )
            yield f"{began_ms:9.1f} ms {took_ms:9.1f} ms  {'  ' * depth}{span.name} ({service}) {about}".rstrip()
            yield from lines(span.span_id, depth + 1)

    return "\n".join(lines(bytes.fromhex(CLIENTS_SPAN), 0))
