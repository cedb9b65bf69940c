"""The section `traces`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import pydantic
from pydantic import Field

from serve_app.config.section import Endpoint, Section


class TracesConfig(Section):
    """Traces of jobs by OpenTelemetry. Headers for the collector: OTEL_EXPORTER_OTLP_HEADERS of the environment."""

    endpoint: Endpoint = "http://127.0.0.1:4318/v1/traces"
    """Where an OTLP collector takes traces over HTTP."""
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of jobs that are traced, of those whose request has no `traceparent` that decides it."""

    @pydantic.model_validator(mode="after")
    def _exporter_is_installed(self) -> TracesConfig:
        try:
            found = find_spec("opentelemetry.exporter.otlp.proto.http")
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ValueError("need the extra `traces`: pip install 'serve-app[traces]'")
        return self
