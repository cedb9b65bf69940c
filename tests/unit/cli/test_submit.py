from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from unittest.mock import ANY

import pytest

from serve_app.cli import main
from serve_app.cli.submit import output_files, save
from serve_app.errors import FileMissingError, QueueFullError
from tests.unit.cli.conftest import IMAGE, fails, makes


def test_a_workflow_is_run_and_its_images_saved_to_the_given_folder(url, server, volume, workflow, tmp_path, capsys):
    server.next_job(makes(volume))
    out = tmp_path / "out"
    assert main(["submit", str(workflow), "--server", url, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out / 'sub' / 'a_00001_.png'}\n"
    assert (out / "sub" / "a_00001_.png").read_bytes() == b"image"
    job_id = next(iter(server.jobs()))
    lines = printed.err.splitlines()
    steps = [f"KSampler 3: {n}/20" for n in (1, 10, 20)]
    assert lines == [f"job {job_id}", "queued", "started", "cached", *steps, "success"]


@pytest.mark.parametrize(("shown", "name"), [("images", "a_00001_.mp4"), ("audio", "a_00001_.flac")])
def test_videos_and_sounds_are_saved_too(url, server, volume, workflow, tmp_path, capsys, shown, name):
    server.next_job(makes(volume, b"moves", shown, {**IMAGE, "filename": name}))
    out = tmp_path / "out"
    assert main(["submit", str(workflow), "--server", url, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'sub' / name}\n"
    assert (out / "sub" / name).read_bytes() == b"moves"


def test_a_job_is_left_to_itself_and_watched_later(url, server, volume, workflow, tmp_path, capsys):
    assert main(["submit", str(workflow), "--server", url, "--detach"]) == 0
    [job_id] = server.jobs()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"{job_id}\n", "")
    server.next_job(makes(volume))
    out = tmp_path / "out"
    for _ in range(2):  # one that has ended too
        assert main(["watch", job_id, "--server", url, "--out", str(out)]) == 0
        printed = capsys.readouterr()
        assert printed.out == f"{out / 'sub' / 'a_00001_.png'}\n"
        assert "KSampler 3: 20/20" in printed.err.splitlines()
    assert printed.err.splitlines()[-1] == "success"


def test_a_job_that_is_unknown_cannot_be_watched(url, capsys):
    assert main(["watch", "550e8400-e29b-41d4-a716-446655440000", "--server", url]) == 1
    assert "serve-app: not_found: no job has the id" in capsys.readouterr().err


def test_a_whole_body_keeps_its_other_members(url, server, volume, workflow, tmp_path, example):
    example["prompt_id"] = "550e8400-e29b-41d4-a716-446655440000"
    workflow.write_text(json.dumps(example))
    server.next_job(makes(volume))
    assert main(["submit", str(workflow), "--server", f"{url}/", "--out", str(tmp_path / "out")]) == 0
    [job] = server.jobs().values()
    assert (job.job_id, job.client_id) == (example["prompt_id"], "client-001")


def test_the_strict_option_and_the_files_name_are_added_to_the_body(url, server, volume, workflow, tmp_path, example):
    workflow.write_text(json.dumps({**example, "extra_data": {"extra_pnginfo": {}}}))
    server.next_job(makes(volume))
    assert main(["submit", str(workflow), "--server", url, "--out", str(tmp_path / "out"), "--strict"]) == 0
    [job] = server.jobs().values()
    named = {"workflow_name": workflow.stem}
    assert job.extra_data == {"extra_pnginfo": {}, "strict": True, "request_id": ANY, **named}


def test_inputs_are_set_from_the_command_line(url, server, volume, workflow, tmp_path):
    server.next_job(makes(volume))
    changes = ["--set", "3.seed=7", "--set", "2.text=a = b"]
    assert main(["submit", str(workflow), "--server", url, "--out", str(tmp_path / "out"), *changes]) == 0
    [job] = server.jobs().values()
    assert job.prompt["3"]["inputs"]["seed"] == 7
    assert job.prompt["2"]["inputs"]["text"] == "a = b"


def test_a_failed_job_ends_with_the_servers_reason(url, server, workflow, capsys):
    server.next_job(fails)
    assert main(["submit", str(workflow), "--server", url]) == 1
    assert "serve-app: error: KSampler 3: NodeError: no such sampler" in capsys.readouterr().err


def test_a_refused_workflow_ends_with_the_servers_error_and_detail(url, server, workflow, capsys):
    assert main(["submit", str(workflow), "--server", url, "--set", "3.sampler_name=eular"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("serve-app: Invalid workflow structure: ")
    assert "'eular'" in printed
    assert server.jobs() == {}


def test_a_job_that_someone_cancels_ends_with_an_error(url, server, workflow, capsys):
    async def cancel(replica, job_id):
        await asyncio.to_thread(main, ["cancel", job_id, "--server", url])

    server.next_job(cancel)
    assert main(["submit", str(workflow), "--server", url]) == 1
    assert "serve-app: cancelled: the job was cancelled" in capsys.readouterr().err


def test_a_full_server_is_retried_and_the_poll_resumes(url, server, volume, workflow, tmp_path, capsys):
    scheduler = server.replica.scheduler
    scheduler.refusal = QueueFullError("1 job waits; at most 1 may", 0)

    async def interrupted(replica, job_id):
        scheduler.refusal = QueueFullError("restarting", 0)
        asyncio.get_running_loop().call_later(0.1, setattr, scheduler, "refusal", None)
        await makes(volume)(replica, job_id)

    server.next_job(interrupted)
    threading.Timer(1.0, lambda: setattr(scheduler, "refusal", None)).start()
    assert main(["submit", str(workflow), "--server", url, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"waiting for {url}: Queue full: 1 job waits; at most 1 may"
    assert lines.count("queued") == lines.count("success") == 1
    assert len(server.jobs()) == 1


def test_an_answer_that_is_lost_on_its_way_queues_nothing_twice(url, server, volume, workflow, tmp_path, capsys):
    """A proxy before the server cuts the first connection after the server has answered it."""
    behind = ("127.0.0.1", int(url.rpartition(":")[2]))
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def forward() -> None:
            first = True
            while True:
                try:
                    client, _ = proxy.accept()
                except OSError:
                    return
                threading.Thread(target=exchange, args=(client, first), daemon=True).start()
                first = False

        def exchange(client: socket.socket, lose: bool) -> None:
            with client, socket.create_connection(behind) as upstream:
                answers = threading.Thread(target=copy, args=(upstream, client, lose), daemon=True)
                answers.start()
                copy(client, upstream, False)
                answers.join()

        def copy(source: socket.socket, target: socket.socket, lose: bool) -> None:
            try:
                while data := source.recv(65536):
                    if lose:
                        target.shutdown(socket.SHUT_RDWR)
                        return
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                return

        threading.Thread(target=forward, daemon=True).start()
        server.next_job(makes(volume))
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        assert main(["submit", str(workflow), "--server", address, "--out", str(tmp_path / "out")]) == 0
        proxy.shutdown(socket.SHUT_RDWR)
    assert capsys.readouterr().err.startswith(f"waiting for {address}: ")
    assert len(server.jobs()) == 1


def test_a_server_that_never_answers_is_given_up_with_the_reason(workflow, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert main(["submit", str(workflow), "--server", url, "--patience", "0.1"]) == 1
    assert f"{url} did not take the request for 0.1 s: " in capsys.readouterr().err


@pytest.mark.parametrize("url", ["ftp://host", "localhost:8188", "http://a:b", ""])
def test_an_address_that_is_none_is_refused_at_once(workflow, capsys, url):
    assert main(["submit", str(workflow), "--server", url]) == 1
    assert f"'{url}' is not an http:// or https:// address" in capsys.readouterr().err


def test_ctrl_c_cancels_the_job(url, server, workflow):
    command = [sys.executable, "-m", "serve_app.cli", "submit", str(workflow), "--server", url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        job_id = process.stderr.readline().removeprefix("job ").strip()
        assert process.stderr.readline() == "queued\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 130
        finally:
            process.kill()
        assert "cancelled" in process.stderr.read()
    assert server.background.run(server.replica.scheduler.job(job_id)).state == "cancelled"


def test_every_image_is_listed_once_whatever_node_shows_it():
    other = {"filename": "b.gif", "type": "temp"}
    outputs = {"6": {"images": [IMAGE]}, "7": {"images": [IMAGE], "gifs": [other], "text": ["x"]}, "8": {}}
    assert list(output_files(outputs)) == [IMAGE, {**other, "subfolder": ""}]


@pytest.mark.parametrize(
    ("subfolder", "filename"),
    [("..", "a.png"), ("", "../a.png"), ("", ""), ("", "."), ("", "\0.png"), ("link", "a.png"), ("a/../..", "b.png")],
)
def test_no_name_makes_a_file_outside_the_directory(tmp_path, subfolder, filename):
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    with pytest.raises(FileMissingError, match="outside"):
        save(b"x", {"filename": filename, "subfolder": subfolder, "type": "output"}, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_absolute_name_lands_inside_the_directory_too(tmp_path):
    path = save(b"x", {"filename": "a.png", "subfolder": "/etc", "type": "output"}, tmp_path)
    assert path == tmp_path / "etc" / "a.png"


def test_a_file_that_is_there_already_is_never_overwritten(tmp_path):
    image = {"filename": "a.png", "subfolder": "", "type": "output"}
    assert save(b"1", image, tmp_path).name == "a.png"
    assert save(b"1", image, tmp_path).name == "a.png"
    assert save(b"2", image, tmp_path).name == "a_2.png"
    assert save(b"3", image, tmp_path).name == "a_3.png"
    assert (tmp_path / "a.png").read_bytes() == b"1"
