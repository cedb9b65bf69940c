"""What holds for every test."""

from __future__ import annotations

import signal

from tests import examples

# A shell that runs the tests in its background has them ignore SIGINT, and the commands they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

examples.register()
