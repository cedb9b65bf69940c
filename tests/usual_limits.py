"""How much one request may hold where a configuration says nothing."""

from __future__ import annotations

from serve_app.config import AppConfig
from serve_app.service.request_limits import Limits

LIMITS = Limits.of(AppConfig())
