"""A collector of traces, and how a trace is shown."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TRACE, CLIENTS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
"""Of the client that asks for the job whose trace is shown."""


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


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """Yield a collector that takes what comes; end it afterwards."""
    with Collector() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        try:
            yield found
        finally:
            found.shutdown()


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
