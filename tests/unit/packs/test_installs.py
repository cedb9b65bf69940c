from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.cli.packs import report_lines
from serve_app.packs.installs import PackInstallError, without_installs
from serve_app.packs.loading import load_packs
from serve_app.store.files.store import AREAS

CLASSES = """
class Fine:
    RETURN_TYPES = ()
    FUNCTION = "go"
    @classmethod
    def INPUT_TYPES(cls):
        return {}
    def go(self):
        return ()
NODE_CLASS_MAPPINGS = {"Fine": Fine}
"""
PIP = """
    import subprocess, sys
    subprocess.check_call([sys.executable, "-s", "-m", "pip", "install", "no-such-package"])
"""


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run([Path(sys.executable), "-m", "pip", "install", "no-such-package"], check=False),
        lambda: subprocess.run("cd / && pip3 uninstall -y no-such-package", shell=True, check=False),
        lambda: os.system("pip install no-such-package"),
    ],
)
def test_a_pip_that_changes_packages_is_not_started(start: object) -> None:
    with without_installs() as refused, pytest.raises(PackInstallError, match="serve-app packs DIR --lock"):
        start()  # type: ignore[operator]
    assert "no-such-package" in refused[0]


def test_other_programs_and_questions_of_pip_run() -> None:
    with without_installs() as refused:
        subprocess.run([sys.executable, "-c", "pass", "install"], check=True)
        subprocess.run([sys.executable, "-m", "pip", "--version"], check=True, capture_output=True)
    assert not refused


def test_a_pack_that_installs_as_it_is_loaded_is_named_and_left_out_unless_it_goes_on(tmp_path: Path) -> None:
    packs = tmp_path / "packs"
    packs.mkdir()
    (packs / "insists.py").write_text(f"if True:{PIP}{CLASSES}")
    (packs / "tries.py").write_text(f"try:{PIP}except Exception:\n    pass\n{CLASSES}")
    found = load_packs(packs, tmp_path / "models", {area: tmp_path / area for area in AREAS})
    assert list(found.failures) == ["insists"]
    assert "node packs may not change the packages" in found.failures["insists"]
    assert list(found.classes) == ["Fine"]
    report = "\n".join(report_lines(found))
    assert report.count("refused to run: ") == 2
    assert "pip install no-such-package" in report
