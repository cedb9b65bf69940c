"""Where a bucket of an S3-compatible store is. Apart from its client, so that naming a place loads none of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from serve_app.config.storage import BucketConfig, S3Config


@dataclass(frozen=True, slots=True)
class Location:
    """Where a bucket is, and how patiently it is asked.

    endpoint: None is Amazon's own, or AWS_ENDPOINT_URL_S3. public_endpoint: as clients outside reach it, None for the
    same. path_style: the bucket in the path and not in the host's name. patience_s: for how long a store that does not
    answer, or says that it cannot now, is asked again. timeout_s: how long one request may stay without an answer.
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
        """Return where a bucket of the configuration is."""
        public = config.public_endpoint if isinstance(config, S3Config) else None
        return cls(**config.model_dump(include=set(BucketConfig.model_fields)), public_endpoint=public)

    @property
    def hurried(self) -> Location:
        """The same, for one who can go on without an answer: it is asked once."""
        return replace(self, patience_s=0.0, timeout_s=5.0)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" + (f" at {self.endpoint}" if self.endpoint else "")
