"""What holds for every test."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# A shell that runs the tests in its background has them ignore SIGINT, and the commands they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine than of the code; the first one also builds Unicode's tables.
settings.register_profile("serve_app", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("serve_app")
