"""What the documents tell people to do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from docs import modules, plan_matrix
from serve_app.cli.commands import app
from serve_app.models.families import BACKBONES

ROOT = Path(__file__).parents[2]
TEXTS = [
    *(ROOT / "configs").glob("*.yaml"),
    *(path for pattern in ("*.md", "*.yaml", "Dockerfile", "docs/**/*.md") for path in ROOT.glob(pattern)),
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_ray_is_never_started_without_a_token(path: Path):
    text = path.read_text()
    for found in re.finditer(r"\bray start(?= -)", text):
        # The block of commands that it is in, or the sentences around it.
        before, after = text[: found.start()], text[found.end() :]
        fenced = before.count("```") % 2
        around = before.rsplit("```" if fenced else "\n\n", 1)[-1] + ("" if fenced else after.split("\n\n", 1)[0])
        assert "RAY_AUTH_MODE=token" in around, around


def test_some_document_says_how_to_start_ray():
    assert sum("ray start" in path.read_text() for path in TEXTS) >= 2


@pytest.mark.parametrize("path", [path for path in TEXTS if path.suffix == ".md"], ids=lambda path: path.name)
def test_links_lead_to_files_that_are_there(path: Path):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_no_page_that_people_write_is_longer_than_a_quarter_of_an_hours_reading(path: Path):
    text = path.read_text()
    made = re.search(r"^(Made|Written) by `python -m|^\[?Made from", text, re.MULTILINE)
    assert made or len(text.split()) <= 2500, "split it"


def test_every_command_in_the_documents_has_the_name_and_options_that_it_is_given():
    group = typer.main.get_command(app)
    lines = [
        (path.name, line)
        for path in (ROOT / "README.md", ROOT / "docs" / "tutorial.md", *(ROOT / "docs" / "guides").glob("*.md"))
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("serve-app ")
    ]
    assert len(lines) > 30
    for name, line in lines:
        for command in line.split("  #")[0].split(";"):
            words = shlex.split(command.split(" > ")[0], comments=True)[1:]
            found = group
            while words and hasattr(found, "commands"):
                assert words[0] in found.commands, (name, line)
                found = found.commands[words.pop(0)]
            options = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
            given = {word.partition("=")[0] for word in words if word.startswith("-")}
            assert given <= options | {"--help", "-h"}, (name, line)


def test_the_page_of_modules_is_made_from_their_docstrings():
    assert (ROOT / "docs" / "modules.md").read_text() == modules.page(), "python -m docs.modules writes it"


@pytest.mark.parametrize(
    "names", ["SDXL, fp16, 1", "Flux.1, NVFP4", "Wan 14B, fp16", pytest.param("", marks=pytest.mark.long)]
)
def test_the_page_of_what_fits_a_card_is_made_by_the_planner(names: str):
    def without_kernels(text: str) -> str:
        # Seconds and the largest sizes follow every kernel of a forward.
        return re.sub(r", [\d.]+ s\b|(?<=no): [^|]*", "", text)

    page = without_kernels(plan_matrix.PAGE.read_text()).splitlines()
    for name, made in plan_matrix.rows(names):
        for of_ram in made.values():
            assert without_kernels(plan_matrix.line(name, of_ram)) in page, "python -m docs.plan_matrix writes it"


def test_every_backbone_has_a_row_or_a_reason_why_not():
    rows = {type(planned.family) for planned in plan_matrix.MODELS.values()}
    assert rows.isdisjoint(plan_matrix.NOT_PLANNED)
    missing = {kind.__name__ for kind in BACKBONES} - {kind.__name__ for kind in rows | plan_matrix.NOT_PLANNED.keys()}
    assert missing == set(), "give each a row in MODELS of docs/plan_matrix.py, or a reason in NOT_PLANNED"


def test_a_model_is_refused_only_where_one_row_has_no_room_and_with_what_would_help():
    cells = [cell for row in plan_matrix.PAGE.read_text().splitlines() for cell in row.split(" | ")]
    refused = [cell for cell in cells if cell.startswith("no:")]
    assert refused
    assert all(re.fullmatch(r"no: \d+×\d+(, \d+ frames)? or a card of \d+ GB", cell) for cell in refused)


def test_no_folder_has_more_than_about_twenty_modules():
    folders = {path.parent for path in (ROOT / "serve_app").rglob("*.py")}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("[!_]*.py"))) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > 22} == {}


def test_decisions_are_numbered_without_a_gap_as_their_titles_say():
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    titles = [re.match(r"# (\d+)\. ", path.read_text()) for path in decisions]
    numbers = [int(path.name[:4]) for path in decisions]
    assert numbers == list(range(1, len(decisions) + 1))
    assert [title and int(title[1]) for title in titles] == numbers
