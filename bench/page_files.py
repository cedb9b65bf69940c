"""What the web page queues of workflow files beside what `convert` makes of them.

    python -m bench.page_files URL FILE...

URL: a server with the page, this one or a ComfyUI with packs, whose classes both sides go by. Files whose classes it
has not are left out. Needs playwright and a chromium.
"""

from __future__ import annotations

import json
import shutil
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from serve_app.errors import WorkflowFileError
from serve_app.graph.saved.convert import convert, is_saved_by_page

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"]
READY = "window.comfyAPI?.app?.app?.graph?.nodes?.length > 0"
SETTLED_MS = 500
"""How long packs' scripts go on after a file is loaded."""
QUEUE = """async ([saved, settled]) => {
    const app = window.comfyAPI.app.app, api = window.comfyAPI.api.api, send = api.queuePrompt;
    let queued = null;
    api.queuePrompt = async (number, made) => { queued = made.output; return {prompt_id: 'none', node_errors: {}}; };
    try {
        await app.loadGraphData(saved);
        await new Promise(resolve => setTimeout(resolve, settled));
        await app.queuePrompt(0);
    } catch { queued = null } finally { api.queuePrompt = send; }
    return queued;
}"""
"""Loads a file and queues it without sending anything; null if the page cannot."""


def differences(made: Mapping[str, Any], queued: Mapping[str, Any]) -> Iterator[str]:
    """Yield where two prompts differ in what runs: their nodes, classes and inputs, not their titles."""
    for name in sorted(made.keys() | queued.keys()):
        ours, theirs = ((prompt.get(name) or {}) for prompt in (made, queued))
        if ours.get("class_type") != theirs.get("class_type"):
            yield f"{name}: {ours.get('class_type')} and not {theirs.get('class_type')}"
            continue
        for key in sorted(ours["inputs"].keys() | theirs["inputs"].keys()):
            values = [prompt["inputs"].get(key, "nothing") for prompt in (ours, theirs)]
            if values[0] != values[1]:
                yield f"{name} {ours['class_type']}.{key}: {values[0]!r:.60} and not {values[1]!r:.60}"


def compared(tab: Any, workflow: Mapping[str, Any], classes: Mapping[str, Any]) -> str:
    """Return how a file fares: equal, or what is otherwise first."""
    try:
        made = convert(workflow, classes, now=datetime.now())
    except WorkflowFileError as error:
        return f"refused: {error}"
    queued = tab.evaluate(QUEUE, [workflow, SETTLED_MS])
    ids = {str(node["id"]) for node in workflow["nodes"]} | {name.partition(":")[0] for name in made}
    if not queued or not {name.partition(":")[0] for name in queued} <= ids:  # what an earlier file has left there
        return "the page does not queue it"
    return next(differences(made, queued), "equal")


def main(url: str, files: Sequence[str]) -> None:
    """Print a row for each file, and how many are equal."""
    from playwright.sync_api import sync_playwright

    with urllib.request.urlopen(f"{url}/api/object_info") as answer:
        classes = json.load(answer)
    found: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        tab = browser.new_page()
        tab.goto(url)
        tab.wait_for_function(READY)
        for file in files:
            workflow = json.loads(Path(file).read_text(encoding="utf-8-sig"))
            if is_saved_by_page(workflow):
                found.append(compared(tab, workflow, classes))
                print(f"{file}: {found[-1]}", flush=True)
        browser.close()
    queued = [row for row in found if not row.startswith(("refused", "the page"))]
    print(f"{len(found)} files, {len(queued)} queued, {queued.count('equal')} equal")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2:])
