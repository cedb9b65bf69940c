"""The section `preemption`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from serve_app.config.section import Section


class PreemptionConfig(Section):
    """How replicas learn that their machine will be taken away, besides Ray's drain of their node, and how soon it is.

    Then they take no more tasks, and hand over what has not ended a few seconds before the end.
    """

    notice: str | None = None
    """A file that exists, or an http:// address that answers 200 with a text that is not FALSE, once there is a notice;
    each replica looks every few seconds, and logs an answer that is neither that nor 404. On AWS, whose addresses ask
    for a token, let a node termination handler write a file. On Google Cloud:
    http://metadata.google.internal/computeMetadata/v1/instance/preempted
    """
    notice_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 15.0
    """The time from the notice to the end, where the notice has none; 15 s is the shortest that a cloud gives."""
