"""How much one request may hold where a configuration says nothing."""

from __future__ import annotations

from serve_app.config import AppConfig

LIMITS = AppConfig().request_limits
