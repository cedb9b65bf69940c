"""The section `store`, where files are, and `models` for model files in a bucket."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from serve_app.config.section import Endpoint, Section


class BucketConfig(Section):
    """A bucket of an S3-compatible store, or a part of one.

    Credentials are never here: they are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment, or a role.
    """

    bucket: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")]
    prefix: str = ""
    """The prefix of its keys; the rest of the bucket is not touched."""
    endpoint: Endpoint | None = None
    """None is Amazon's own, or AWS_ENDPOINT_URL_S3 of the environment."""
    region: str | None = None
    """None is AWS_REGION's, or us-east-1."""
    path_style: bool = False
    """Whether the bucket is named in the path and not in the host, as most stores but Amazon's want it."""
    patience_s: Annotated[float, Field(ge=0, le=600)] = 30.0
    """How long requests to an unreachable or busy store are retried."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    """The timeout of one request."""


class S3Config(BucketConfig):
    """Clients' files in a bucket."""

    kind: Literal["s3"]
    presigned_redirects: bool = False
    """Whether GET /view answers with a link to the store, so that files do not pass through the ingress."""
    public_endpoint: Endpoint | None = None
    """The endpoint in these links, if clients reach the store by another address than the servers."""
    link_s: Annotated[int, Field(ge=1, le=604_800)] = 300
    """The lifetime of these links."""


class VolumeConfig(Section):
    """Clients' files in input_dir, output_dir and temp_dir, on a volume that every host mounts."""

    kind: Literal["volume"] = "volume"


StoreConfig = Annotated[VolumeConfig | S3Config, Field(discriminator="kind")]


def _by_url(given: Any) -> Any:
    """Expand `s3://bucket/prefix` to keys."""
    if not isinstance(given, str):
        return given
    bucket, _, prefix = given.removeprefix("s3://").partition("/")
    if not given.startswith("s3://"):
        raise ValueError("must be s3://BUCKET/PREFIX, or keys such as bucket and prefix")
    return {"bucket": bucket, "prefix": prefix}


NamedBucket = Annotated[BucketConfig, pydantic.BeforeValidator(_by_url)]
"""A bucket, as keys or as `s3://BUCKET/PREFIX`."""
