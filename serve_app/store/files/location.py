"""The location of a bucket in an S3-compatible store. Apart from the client, so that boto3 need not be loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from serve_app.config.storage import BucketConfig, S3Config


@dataclass(frozen=True, slots=True)
class Location:
    """The location of a bucket, with timeouts.

    endpoint: None is Amazon's own, or AWS_ENDPOINT_URL_S3. public_endpoint: as clients outside reach it, None for the
    same. path_style: the bucket in the path and not in the host's name. patience_s: how long requests to an
    unavailable or busy store are retried. timeout_s: of one request.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    region: str | None = None
    path_style: bool = False
    patience_s: float = field(kw_only=True)
    timeout_s: float = field(kw_only=True)

    @classmethod
    def of(cls, config: BucketConfig) -> Location:
        """Return the location of a configured bucket."""
        public = config.public_endpoint if isinstance(config, S3Config) else None
        return cls(**config.model_dump(include=set(BucketConfig.model_fields)), public_endpoint=public)

    @property
    def hurried(self) -> Location:
        """The same location without retries, for callers that can go on without an answer."""
        return replace(self, patience_s=0.0, timeout_s=5.0)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" + (f" at {self.endpoint}" if self.endpoint else "")
