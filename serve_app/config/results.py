"""The section `results`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from serve_app.config.section import Section


class ResultsConfig(Section):
    """Which results of nodes are kept in work_dir, so that an equal workflow is answered from them after a restart.

    Only those that are quicker to read than to compute, of built-in nodes, whose values are tensors, numbers and texts.
    """

    after_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """How long a node has to take for its values to be kept; of an output node, its workflow."""
    max_bytes: Annotated[int, Field(ge=0)] = 2_000_000_000
    """The most that all of them may take; the oldest are deleted first."""
    age_s: Annotated[float, Field(ge=60, allow_inf_nan=False)] = 86_400.0
    """How old they get."""
