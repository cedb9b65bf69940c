"""The section `resume`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from serve_app.config.section import Section


class ResumeConfig(Section):
    """Which sampler runs keep a state in work_dir, from which another replica goes on if theirs is lost.

    Saving takes at most 1 % of a run's time. States of jobs that have ended are deleted, others after temp_age_s.
    """

    after_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """How long a run takes before anything is saved; a shorter one starts again."""
    max_bytes: Annotated[int, Field(ge=1)] = 2_000_000_000
    """The most that one run's state may take. It grows by two latents a step with cfg, else by one."""
