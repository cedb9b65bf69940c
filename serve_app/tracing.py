"""OpenTelemetry traces: one a job, from its HTTP request over tasks, nodes and forwards to its files. Off by default.

A span's place goes between processes as W3C Trace Context's `traceparent`, with the job. Without `configure` every
function here does nothing, and no library is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

EXPORT_MS = 1000
"""How long an ended span waits for others to be sent with: what a process that dies may lose."""
TRACEPARENT = "traceparent"
_NANOSECONDS = 1e9

_tracer: Any = None


def configure(service: str, endpoint: str, sample: float = 1.0) -> None:
    """Send this process's spans to an OTLP collector over HTTP. Called once a process.

    service: what the process is, such as "replica". endpoint: the collector's URL for traces. sample: the share of
    traces that are recorded, for those that the client has not decided about.
    """
    # Here and not above: they are there with the extra `traces` alone.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    global _tracer
    resource = Resource.create({"service.name": f"serve-app-{service}"})
    # Not the global one, which belongs to Ray and to node packs.
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(sample)), resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint), schedule_delay_millis=EXPORT_MS))
    _tracer = provider.get_tracer("serve_app")


@contextlib.contextmanager
def span(name: str, parent: object = None, **attributes: str | int | float) -> Iterator[None]:
    """Record the context as a span, the parent of spans inside. parent: a traceparent; else the span around it."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, context=_context(parent), attributes=attributes):
        yield


def traceparent() -> str | None:
    """Return the place of the span around the caller, None without one."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(TRACEPARENT)


def record(name: str, begin_s: float, end_s: float, parent: object, **attributes: str | int | float) -> None:
    """Record a span that has ended, with its Unix times, if there is a parent."""
    if _tracer is None or parent is None:
        return
    begin, end = (int(at_s * _NANOSECONDS) for at_s in (begin_s, end_s))
    _tracer.start_span(name, context=_context(parent), start_time=begin, attributes=attributes).end(end)


def _context(parent: object) -> Any:
    """Return the context of a traceparent; None, which is the caller's own, for what is none."""
    if not isinstance(parent, str):
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({TRACEPARENT: parent})
