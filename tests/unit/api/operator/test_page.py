"""The operator's page's own files: what they are made of, and that the server has every one of them."""

from __future__ import annotations

import hashlib
import re

from serve_app.api.operator.overview import FILES, LIBRARIES, PAGE

ROW = re.compile(r"^\| (\S+) \| (?:tabulator-tables|uplot) \S+ \| \S+ \| ([0-9a-f]{64}) \|$", re.MULTILINE)


def test_the_libraries_are_as_they_were_published_and_come_with_their_licences():
    written = dict(ROW.findall((LIBRARIES / "README.md").read_text()))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in LIBRARIES.iterdir()}
    del found["README.md"]
    assert written == found
    assert {"tabulator.LICENSE", "uplot.LICENSE"} <= set(found)


def test_all_that_the_page_loads_are_its_own_files():
    page = (PAGE / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="operator/files/([^"]+)"', page)) <= set(FILES)
    assert re.findall(r"https?:", page) == []
    own = [PAGE / name for name in ("operator.js", "tables.js", "charts.js")]
    assert {name for path in own for name in re.findall(r'from "\./([^"]+)"', path.read_text())} <= set(FILES)
    assert all(path.is_file() for path in FILES.values())


def test_no_script_of_the_page_makes_markup_of_texts():
    own = "".join((PAGE / name).read_text() for name in ("operator.js", "tables.js", "charts.js"))
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", own) == []


async def test_use_is_listed_by_day_and_as_csv(client, replica, example):
    job_id = (await client.post("/prompt", json=example)).json()["prompt_id"]
    await replica.start(job_id)
    await replica.succeed(job_id, {})
    [use] = (await client.get("/operator/use")).json()["days"]
    assert (use["tenant"], use["jobs"], use["saved_bytes"]) == ("", 1, 0)
    head, row = (await client.get("/operator/use.csv")).text.splitlines()
    assert head == "day,tenant,jobs,gpu_seconds,saved_bytes"
    assert row.startswith(f"{use['day']},,1,")
