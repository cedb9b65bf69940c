"""The base class of all sections of the configuration, and types of values that several have."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import pydantic
from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the configuration: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL such as https://store.example:9000")
    if "@" in parts.netloc:
        raise ValueError("must hold no credentials; they come from the environment or a role")
    return url


Endpoint = Annotated[str, pydantic.AfterValidator(_endpoint)]
"""Where an HTTP server is, without credentials."""
