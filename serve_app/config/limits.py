"""The sections `limits`, `events`, `webhooks`, `model_changes` and `backoff`: bounds on what clients may request."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, NamedTuple

from pydantic import Field

from serve_app.config.section import Section
from serve_app.limits import refused

VALUE_SHARE, TASK_SHARE = 4, 2
"""Divisors: the parts of the process's memory that one value, and all values of a task, may fill by default."""


class EventLimits(Section):
    """How many unread events the scheduler keeps; beyond these the oldest are dropped.

    A client that misses events finds the outcome in the history.
    """

    feed_events: Annotated[int, Field(ge=1)] = 4096
    """Events that wait for one client."""
    feed_bytes: Annotated[int, Field(ge=0)] = 16 * 1024 * 1024
    """Memory that they take; the newest stays however large it is."""
    feeds_bytes: Annotated[int, Field(ge=0)] = 256 * 1024 * 1024
    """Memory of all clients' events; the client that has been away for longest is forgotten first."""
    streams: Annotated[int, Field(ge=0)] = 2048
    """Ended jobs whose events stay in memory; those of others are rebuilt from the database."""
    streams_bytes: Annotated[int, Field(ge=0)] = 128 * 1024 * 1024
    """Memory of all jobs' events before those of ended jobs go sooner."""


class ModelChangeLimits(Section):
    """Limits of uploads of model files: size, time, and number at once."""

    max_bytes: Annotated[int, Field(ge=1)] = 50_000_000_000
    body_s: Annotated[float, Field(gt=0)] = 7200.0
    """How long a file may take to arrive, in the place of ingress.body_s."""
    at_once: Annotated[int, Field(ge=1)] = 2
    """Files that may be arriving at one ingress replica; one more is answered 503."""


class WebhookLimits(Section):
    """Limits of webhooks: their number, their addresses, and retries."""

    most: Annotated[int, Field(ge=0)] = 100
    """Webhooks that each tenant may have, or all together without tenants; 0 allows none."""
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that webhooks may be in beside public addresses, as 10.1.0.0/16 or 127.0.0.1/32."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 15.0
    """How long a webhook may take to answer."""
    retry_s: Annotated[float, Field(gt=0, le=14_400)] = 5.0
    """Delay of the first retry; four times as long after each further failure, at most 4 hours."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 12
    """How often a delivery is attempted."""
    hosts: Mapping[str, str] = {}
    """Labels of the hosts that may run the webhook sender, as pools have them: {role: webhooks}. Empty is any."""


class SizeLimits(Section):
    """Limits of values and workflows; beyond them a job fails or is refused before memory is allocated."""

    image_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 134_217_728
    """Pixels of one image that is read from a file, or of one frame. More than the maximum no decoder here takes."""
    value_bytes: Annotated[int, Field(ge=0)] = 0
    """Of all that one node makes: tensors, text, every frame of a file; 0 is a quarter of the memory there is."""
    task_bytes: Annotated[int, Field(ge=0)] = 0
    """Of all that the nodes of one task make, which stays until it ends; 0 is half of the memory there is."""
    text_characters: Annotated[int, Field(ge=1)] = 4_000_000
    """Of one text that a node makes."""
    prompt_bytes: Annotated[int, Field(ge=1)] = 65_536
    """Of one text that a text encoder reads, in UTF-8: some take time and memory that grow with its square."""
    generated_tokens: Annotated[int, Field(ge=1)] = 10_000
    """Of one text that a language model generates; what it keeps of each stays until the last."""
    shown_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    """Of the outputs that the nodes of one task show its client, which pass through the scheduler and the database."""
    graph_nodes: Annotated[int, Field(ge=1)] = 20_000
    """Nodes of one workflow, those that its nodes make among them."""
    levels: Annotated[int, Field(ge=1)] = 100_000
    """Levels of noise of one schedule: a sampler's steps, over its denoise; see `levels_of`."""
    conditionings: Annotated[int, Field(ge=1)] = 1_000
    """Entries of one CONDITIONING; each is a row of every forward of its sampler."""
    batch: Annotated[int, Field(ge=1)] = 16_384
    """Images, masks or latents of one batch, the frames of a video among them."""
    sample_rate: Annotated[int, Field(ge=1)] = 768_000
    """Samples a second of one sound; the filters by which it gets another rate grow with it."""
    renders: Annotated[int, Field(ge=1)] = 2
    """Images that one ingress renders at once for GET /view with a preview or a channel; others wait."""

    decoder_bytes: Annotated[int, Field(ge=64 * 1024 * 1024)] = 2 * 1024**3
    """Memory that the process that decodes one file may take: an image, a sound, a video that is read or rewritten."""
    decoder_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """How long one file may take to be decoded, or rewritten."""

    def within(self, memory_bytes: int) -> SizeLimits:
        """Return the limits for a process with this much memory."""
        value_bytes = self.value_bytes or memory_bytes // VALUE_SHARE
        task_bytes = self.task_bytes or max(value_bytes, memory_bytes // TASK_SHARE)
        return self.model_copy(update={"value_bytes": value_bytes, "task_bytes": task_bytes})

    def excess(self, key: str, count: int, unit: str) -> str | None:
        """Return an error message for a count beyond this key's limit, and count the refusal; None within the limit."""
        most: int = getattr(self, key)
        if not most or count <= most:
            return None
        refused(f"limits.{key}")
        return f"{count:,} {unit}; limits.{key} of the configuration allows {most:,}"


class BackoffRules(Section):
    """How long the next jobs of a tenant (without tenants, a client) wait after one of its jobs has ended a replica.

    Others' jobs do not wait.
    """

    first_s: Annotated[float, Field(ge=0, le=86_400)] = 5.0
    """Delay after the first loss; doubled after each further one. 0 turns the back-off off."""
    longest_s: Annotated[float, Field(ge=0, le=86_400)] = 900.0
    """The longest delay."""
    forgiven_s: Annotated[float, Field(gt=0, le=864_000)] = 900.0
    """After this time without a loss one loss is forgotten, and after the same time again the next."""


class LatentBounds(NamedTuple):
    """How many cells the latents of one sampler may have, and how many pairs of those may attend to each other."""

    cells: int
    pairs: int
