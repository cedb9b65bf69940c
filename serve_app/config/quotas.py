"""The section `quotas`: limits per tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, field_serializer

from serve_app.config.section import Section

Count = Annotated[int, Field(ge=0)]


class Quota(Section):
    """The limits of one tenant. None is no limit; 0 allows nothing."""

    weight: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    """Its share of each pool, relative to the weights of other tenants with jobs."""
    queued: Count | None = None
    """Jobs that wait; one more is answered 429."""
    running: Count | None = None
    """Jobs that run at once; others wait."""
    gpu_s_a_day: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Seconds of GPUs from midnight to midnight UTC. What it has used and what its unfinished jobs are expected to take
    must be less when a job comes. Jobs that run on a replica at a time share its GPUs equally; one that holds models
    on a CPU counts as a GPU, one that holds none not at all."""
    requests_a_minute: Count | None = None
    """Requests per minute to each ingress process, with bursts of up to one minute's number."""
    bytes_stored: Count | None = None
    """Bytes of its files: uploads, outputs, previews, assets, and the page's files. More is answered 429, and so is a
    job while nothing is left; outputs of accepted jobs are counted and never refused.
    """
    steps_a_job: Count | None = None
    """Steps of all samplers in one job's graph."""
    pixels_a_job: Count | None = None
    """Pixels of all images and latents that one job's graph makes by a width and a height."""


OTHER = "other"
"""The label in metrics of tenants without an entry."""


class Quotas(Section):
    """The quotas of tenants: a tenant's keys in `tenants`, else those of `default`. The operator has none."""

    default: Quota = Quota()
    tenants: Mapping[str, Quota] = {}
    _merged: dict[str, Quota] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: object, /) -> None:
        """Merge each tenant's quota with the default once."""
        for tenant, own in self.tenants.items():
            said = {key: getattr(own, key) for key in own.model_fields_set}
            self._merged[tenant] = self.default.model_copy(update=said)

    @field_serializer("tenants")
    def _as_said(self, tenants: Mapping[str, Quota]) -> dict[str, dict[str, Any]]:
        """Serialize only a tenant's own keys, so that the default applies to the rest when it is parsed again."""
        return {tenant: own.model_dump(exclude_unset=True) for tenant, own in tenants.items()}

    def of(self, tenant: str) -> Quota:
        """Return a tenant's quota."""
        return self._merged.get(tenant, self.default) if tenant else _OPERATORS

    @property
    def count_bytes(self) -> bool:
        """Whether any tenant has a quota of bytes, so that stored bytes must be counted."""
        return any(quota.bytes_stored is not None for quota in (self.default, *self._merged.values()))

    def label(self, tenant: str) -> str:
        """Return a tenant's label in metrics; tenants without an entry share one."""
        return tenant if tenant in self.tenants or not tenant else OTHER


_OPERATORS = Quota()
NO_QUOTAS = Quotas()
