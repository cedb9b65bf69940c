"""Limits of one request: the size of its body, how many ids it may name, how long it may wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from serve_app.config import AppConfig
from serve_app.config.ingress import COMMAND_BYTES, IDS, QUEUE_BYTES, QUEUE_ITEMS
from serve_app.config.limits import LatentBounds, ModelChangeLimits, SizeLimits, WebhookLimits
from serve_app.config.quotas import NO_QUOTAS, Quotas
from serve_app.store.retention.rules import RetentionRules


class BodyBound(NamedTuple):
    """The largest body, in bytes, and the limit's key in the configuration."""

    bytes: int
    key: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request, and limits that its validation needs.

    body_bytes: size of a submission or of a user's file. upload_bytes: of an upload. command_bytes, ids: size of any
    other body, for example settings, and how many jobs it may name. poll_s: length of a long poll. sizes: of images in
    the request or rendered for it. latents: of a sampler of the shared pools; None is no limit. queue_items,
    queue_bytes: of the queue in an answer, as QueueBounds. webhooks: how many, and where. retention: how long ended
    jobs are kept. quotas: of tenants. model_changes: of model files that admins upload; None where uploads are off.
    """

    body_bytes: int
    upload_bytes: int
    command_bytes: int = COMMAND_BYTES
    ids: int = IDS
    poll_s: float = 60.0
    sizes: SizeLimits = field(default_factory=SizeLimits)
    latents: LatentBounds | None = None
    queue_items: int = QUEUE_ITEMS
    queue_bytes: int = QUEUE_BYTES
    webhooks: WebhookLimits = field(default_factory=WebhookLimits)
    retention: RetentionRules = field(default_factory=RetentionRules)
    quotas: Quotas = NO_QUOTAS
    model_changes: ModelChangeLimits | None = None

    @classmethod
    def of(cls, config: AppConfig) -> Limits:
        """Return the configured limits."""
        return cls(
            body_bytes=config.ingress.max_body_bytes,
            upload_bytes=config.ingress.max_upload_bytes,
            command_bytes=config.ingress.max_command_bytes,
            ids=config.ingress.max_ids,
            sizes=config.limits,
            latents=config.latents,
            queue_items=config.ingress.queue_items,
            queue_bytes=config.ingress.queue_bytes,
            webhooks=config.webhooks,
            retention=RetentionRules.of(config.retention),
            quotas=config.quotas,
            model_changes=config.model_changes,
        )

    @property
    def body(self) -> BodyBound:
        """The bound of a submission, or of a user's file."""
        return BodyBound(self.body_bytes, "ingress.max_body_bytes")

    @property
    def upload(self) -> BodyBound:
        """The bound of an upload, its whole form."""
        return BodyBound(self.upload_bytes, "ingress.max_upload_bytes")

    @property
    def command(self) -> BodyBound:
        """The bound of any other body."""
        return BodyBound(self.command_bytes, "ingress.max_command_bytes")
