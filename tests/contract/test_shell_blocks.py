"""Every line of every shell block in README, the tutorial and the guides, run against a server on the demo's models.

A block that prints something is followed by a block of text, in which … stands for anything.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from serve_app.cli import examples, main
from serve_app.models.shipped import CHECKPOINT, provide
from serve_app.store.database.jobs import Jobs
from tests.cluster.server import Server

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
BLOCK = re.compile(r"```bash\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
NOT_RUN = {
    r"pip install|make |source ": "installs or builds: the tests of the wheel and of CI do",
    r"sudo |systemctl |journalctl ": "wants root and systemd",
    r"rsync ": "copies the whole server to another place",
    r"export RAY|\(umask|ray |serve deploy": "a Ray of one's own: tests/cluster starts one so",
    r"serve-app (demo|up)\b": "a server of one's own: tests/cluster starts one so",
    r"serve-app logs -f": "goes on until Ctrl-C",
    r"serve-app compare": "wants a pool that is a ComfyUI",
}
"""What is not run, by how it begins, and why."""
STATUSES = {"cancel": {1}, "doctor": {0, 1}, "adopt": {0}}
"""The exit statuses of commands that may end otherwise than with 0: the job that is cancelled has ended already."""


def commands(block: str) -> list[str]:
    """Return the commands of a block, without comments."""
    lines = [re.sub(r"(^|\s+)#.*", "", line) for line in block.replace("\\\n", " ").splitlines()]
    return [command.strip() for line in lines for command in line.split(";") if command.strip()]


def reason(command: str) -> str | None:
    return next((why for begin, why in NOT_RUN.items() if re.match(begin, command)), None)


@pytest.fixture
def site(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A folder like a user's, in which commands run. Returns what stands for a name in them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SERVE_APP_URL", server.url)
    provide(tmp_path / "ComfyUI" / "models")
    (tmp_path / "ComfyUI" / "main.py").touch()
    for folder in ("custom_nodes", "ComfyUI/custom_nodes", "state"):
        (tmp_path / folder).mkdir()
    shutil.copy(tmp_path / "ComfyUI" / "models" / "checkpoints" / CHECKPOINT, tmp_path / "flux.safetensors")
    Jobs(f"sqlite:///{tmp_path}/state/jobs.sqlite").close()
    workflow = examples.read("text-to-image")
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    (tmp_path / "workflow-body.json").write_text(json.dumps({"prompt": workflow}))
    job = server.submit(workflow)
    server.finished(job)
    replica = server.get("/status")["replicas"][0]["replica_id"]
    return {"JOB": job, "PROMPT_ID": job, "REPLICA": replica, "localhost:8188": server.url.removeprefix("http://")}


def run(command: str, names: dict[str, str]) -> str:
    """Run a command and return what it prints; the project's own in this process, as Python takes a second to start."""
    for name, value in names.items():
        command = re.sub(rf"\b{name}\b", value, command)
    words = shlex.split(command)
    if words[0] != "serve-app" or words[1] in ("packs", "adopt"):  # which end their process
        shell = command.replace("serve-app", f"{sys.executable} -m serve_app.cli", 1)
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout
    target = words[words.index(">") + 1] if ">" in words else None
    printed = io.StringIO()
    arguments = [word.replace("~", str(Path.home())) for word in words[1 : words.index(">") if target else None]]
    with redirect_stdout(printed):
        assert main(arguments) in STATUSES.get(words[1], {0}), (command, printed.getvalue())
    if target is not None:
        Path(target).write_text(printed.getvalue())
        return ""
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_runs_and_prints_what_the_page_shows(page: Path, site: dict[str, str]):
    for block, shown in BLOCK.findall(page.read_text()):
        printed = "".join(run(command, site) for command in commands(block) if reason(command) is None)
        pattern = r"[\s\S]*?".join(map(re.escape, shown.strip().split("…")))
        assert not shown or re.fullmatch(pattern, printed.strip()), (page.name, block, printed)
        if "serve-app drain" in block:
            main(["drain", site["REPLICA"], "--undo"])


def test_every_reason_not_to_run_a_command_is_some_commands():
    written = [command for page in PAGES for block, _ in BLOCK.findall(page.read_text()) for command in commands(block)]
    assert {reason(command) for command in written} - {None} == set(NOT_RUN.values())
