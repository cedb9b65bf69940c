"""Everything that is to be learned of a GPU, in one command: its tests, then what is measured, as a table.

    python -m tests.gpu --comfyui DIR --comfyui-python PYTHON     # at most 45 minutes
    python -m tests.gpu --check                                   # the same without a GPU, with small networks

Writes measured.md and measured.json. The exit status is 0 if all tests passed and all was measured.
"""

from __future__ import annotations

import subprocess
import sys

from tests.gpu import measure

TESTS = ("-m", "pytest", "-o", "addopts=", "-q", "-m", "gpu", "tests/gpu/test_card.py")
ON_DOUBLE = ("-p", "tests.gpu.on_double")


def main() -> int:
    arguments = sys.argv[1:]
    double = ON_DOUBLE if "--check" in arguments else ()
    tests = subprocess.run([sys.executable, *TESTS, *double], check=False).returncode
    return measure.main(arguments) or tests


if __name__ == "__main__":
    sys.exit(main())
