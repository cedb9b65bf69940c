"""The section `retention`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from serve_app.config.section import Seconds, Section


class KeepConfig(Section):
    """Bounds of one kind of data; a missing key is no bound."""

    age_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    count: Annotated[int, Field(ge=0)] | None = None
    bytes: Annotated[int, Field(ge=0)] | None = None


class KeptConfig(Section):
    """Retention of one tenant, or of each."""

    history: KeepConfig | None = None
    """Jobs that have ended; bytes are those of their texts in the database. Their files stay."""
    outputs: KeepConfig | None = None
    """All files in output_dir, or in that area of the bucket."""
    previews: KeepConfig | None = None
    """Preview images of nodes in temp_dir; also removed after temp_age_s."""
    uploads: KeepConfig | None = None
    """All files in input_dir except uploads of Comfy API v2, which have their own expiry."""
    temp: KeepConfig | None = None
    """All other files in temp_dir."""


class RetentionConfig(KeptConfig):
    """How much is kept of each kind of data: bounds per tenant, unless the tenant has its own."""

    tenants: Mapping[str, KeptConfig] = {}
    every_s: Seconds = 300.0
    """How often the rules are applied."""
