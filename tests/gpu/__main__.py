"""Everything that is to be learned of a GPU, in one command: its tests, then what is measured, as a table.

    python -m tests.gpu --comfyui DIR --comfyui-python PYTHON     # at most 45 minutes
    python -m tests.gpu --check                                   # without a GPU: small networks, and no tests

Writes measured.md and measured.json. The exit status is 0 if all tests passed and all was measured.
"""

from __future__ import annotations

import subprocess
import sys

from tests.gpu import measure

TESTS = ("-m", "pytest", "-o", "addopts=", "-q", "-m", "gpu", "tests/gpu/test_card.py")


def main() -> int:
    arguments = sys.argv[1:]
    tests = 0 if "--check" in arguments else subprocess.run([sys.executable, *TESTS], check=False).returncode
    return measure.main(arguments) or tests


if __name__ == "__main__":
    sys.exit(main())
