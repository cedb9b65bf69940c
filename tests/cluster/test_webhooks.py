"""A receiver of webhooks that is away, slow and wrong while scheduler and sender are killed: all arrives, in order."""

from __future__ import annotations

from tests.cluster.receiver import Receiver
from tests.cluster.server import Server, free_port, txt2img, wait_for

JOBS = 6
STORY = ["job.queued", "job.running", "job.succeeded"]


def test_every_event_arrives_and_in_order_though_scheduler_and_sender_are_killed(server: Server) -> None:
    port = free_port()
    made = server.http.post("/api/webhooks", json={"url": f"http://127.0.0.1:{port}/", "events": STORY})
    assert made.status_code == 201, made.text
    webhook = f"/api/webhooks/{made.json()['id']}"
    deliveries = f"{webhook}/deliveries"
    early = [server.submit(txt2img(seed, steps=2, text="webhooks")) for seed in range(JOBS)]
    # Nobody listens yet.
    wait_for(lambda: any(d["problem"] for d in server.get(deliveries)["deliveries"]), "an attempt that failed")
    server.kill("scheduler")
    wait_for(server.answers, "another scheduler")
    late = [server.submit(txt2img(seed, steps=2, text="webhooks")) for seed in range(JOBS, 2 * JOBS)]
    receiver = Receiver(port)
    try:
        wait_for(lambda: receiver.taken, "something that arrives")
        server.kill("webhook_sender")
        seen = len(receiver.taken)
        wait_for(lambda: len(receiver.taken) > seen, "something by another sender")
        server.kill("scheduler")
        for job_id in (*early, *late):
            server.finished(job_id)
        wait_for(lambda: len(receiver.stories()) == 2 * JOBS and receiver_done(receiver), "the last of them")
        assert receiver.stories() == dict.fromkeys((*early, *late), STORY)
        wait_for(lambda: not server.get(deliveries, state="pending")["deliveries"], "all to be noted")
        assert len(server.get(deliveries, state="delivered", limit=200)["deliveries"]) == 6 * JOBS
    finally:
        receiver.close()
        server.http.delete(webhook)


def receiver_done(receiver: Receiver) -> bool:
    return all(len(story) == len(STORY) for story in receiver.stories().values())
