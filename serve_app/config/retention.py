"""The section `retention`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from serve_app.config.section import Seconds, Section


class KeepConfig(Section):
    """How much is kept of a kind; what is left out sets no bound."""

    age_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    count: Annotated[int, Field(ge=0)] | None = None
    bytes: Annotated[int, Field(ge=0)] | None = None


class KeptConfig(Section):
    """How much is kept for one tenant, or for each."""

    history: KeepConfig | None = None
    """Jobs that have ended; bytes are those of their texts in the database. Their files stay."""
    outputs: KeepConfig | None = None
    """Whatever is in output_dir, or that area of the bucket."""
    previews: KeepConfig | None = None
    """Pictures in temp_dir that nodes have shown; also removed after temp_age_s."""
    uploads: KeepConfig | None = None
    """Whatever is in input_dir but uploads of Comfy API v2, which expire as their clients say."""
    temp: KeepConfig | None = None
    """Whatever else is in temp_dir."""


class RetentionConfig(KeptConfig):
    """How much is kept. The bounds of a kind are each tenant's, but for those with bounds of their own for it."""

    tenants: Mapping[str, KeptConfig] = {}
    every_s: Seconds = 300.0
    """How often it is looked whether something must go."""
