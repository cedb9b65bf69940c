"""`serve-app packs` ends, whatever the packs it has loaded go on with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

PACK = """
    import threading, time

    threading.Thread(target=lambda: time.sleep(3600)).start()

    class Made:
        RETURN_TYPES = ()
        FUNCTION = "go"
        OUTPUT_NODE = True
        @classmethod
        def INPUT_TYPES(cls):
            return {}
        def go(self):
            return ()

    NODE_CLASS_MAPPINGS = {"Made": Made, "SaveImage": Made}
"""


def test_a_pack_with_a_thread_of_its_own_is_listed_and_left(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(dedent(PACK))
    command = [sys.executable, "-m", "serve_app.cli", "packs", str(tmp_path), "--markdown"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "| mine | 2 | 2 |  |" in made.stdout.splitlines()
