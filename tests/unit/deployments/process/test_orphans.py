"""Processes of actors that Ray has declared dead and not ended, in a Ray of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from ray._private import ray_constants

from serve_app.deployments.process.ray_start import ORPHANS

ORPHANED = """
import os, threading, time
import psutil, ray
from ray.util import list_named_actors
from serve_app.deployments.process.orphans import watch

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)

@ray.remote(num_cpus=0)
class Actor:
    def watch(self):
        watched = [thread.name for thread in threading.enumerate()].count("orphans")
        watch(look_s=0.2)
        return os.getpid(), watched

actors = [Actor.options(name="orphan").remote(), Actor.options(name="other").remote(), Actor.remote()]
processes, watched = zip(*ray.get([actor.watch.remote() for actor in actors]))
processes = [psutil.Process(pid) for pid in processes]
time.sleep(2)
[raylet] = [p for p in psutil.Process().children() if p.name() == "raylet"]
# It cannot pass on the order to kill.
raylet.suspend()
ray.kill(actors[0])
processes[0].wait(30)
raylet.resume()
print(watched, [actor["name"] for actor in list_named_actors(all_namespaces=True)], [p.is_running() for p in processes])
"""


def test_ray_has_every_actor_watch_itself_and_one_that_it_has_lost_ends() -> None:
    assert ORPHANS.keys() == {ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR}
    # Of its own, with a short path for sockets: Ray notes there which cluster others would join.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        environment = {**os.environ, **ORPHANS, "RAY_TMPDIR": folder}
        command = [sys.executable, "-c", ORPHANED]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert "(1, 1, 1) ['other'] [False, True, True]" in done.stdout.splitlines(), done.stdout + done.stderr
