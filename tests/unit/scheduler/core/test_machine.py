"""The machine's rules, as scripts of stimuli and the commands they must bring."""

from __future__ import annotations

from unittest.mock import ANY

from serve_app.events import Failure
from serve_app.graph.plan import Task
from serve_app.scheduler.core.demand import Demand, replicas_by_count
from serve_app.scheduler.core.events import (
    CancelAsked,
    JobRefused,
    PausesChanged,
    Persist,
    Publish,
    ReplicaJoined,
    ReplicaLeft,
    ReplicaLost,
    TimePassed,
)
from serve_app.scheduler.core.records import SHARED_LOSSES
from serve_app.scheduler.core.results import Results
from serve_app.scheduler.protocol.messages import (
    Compute,
    Deliver,
    Draining,
    Evicted,
    Export,
    Exported,
    Interrupt,
    NodeFinished,
    NodeProgressed,
    NodesCached,
    NodesLinger,
    NodeStarted,
    Reopened,
    ReplicaInfo,
    ResidentWeights,
    SlotReleased,
    TaskFailed,
    TaskFinished,
    TaskStopped,
    Want,
)
from serve_app.store.database.changes import (
    JobAccepted,
    JobCached,
    JobEnded,
    JobLostReplica,
    OutputRecorded,
    TenantUsed,
)
from serve_app.store.tenants.pauses import THE_QUEUE, Pause
from tests.unit.scheduler.script import TWO_POOLS, Script, assigned, changes, events, sent, task_id, twins, two_outputs


def test_a_job_is_persisted_before_it_is_announced():
    commands = Script().job("a")
    assert isinstance(commands[0], Persist)
    assert isinstance(commands[0].change, JobAccepted)
    assert events(commands, "a") == ["queued"]


def test_a_job_waits_for_a_replica_and_then_runs_to_success():
    script = Script()
    assert assigned(script.job("a")) == []
    [(replica, task)] = assigned(script.replica("r1"))
    assert replica == "r1"
    assert task.targets == ("3",)
    script.run("r1", task)
    assert events(script.commands, "a") == ["queued", "started", "cached", *["finished"] * 2, "executed", "success"]
    assert "a" not in script.machine.jobs


def test_a_task_that_takes_a_replicas_last_slot_is_not_deferrable():
    script = Script()
    script.replica("r1", slots=3)
    tasks = [task for seed in range(4) for _, task in assigned(script.job(f"job {seed}", seed=seed))]
    assert [task.deferrable for task in tasks] == [True, True, False]
    assert [task.deferrable for _, task in assigned(script.run("r1", tasks[0]))] == [False], "it takes the slot left"


def test_a_task_is_deferrable_if_no_socket_follows_its_job():
    script = Script()
    script.replica("r1", slots=8)
    clients = {None: True, "": True, "me": False}
    for seed, (client_id, deferrable) in enumerate(clients.items()):
        [(_, task)] = assigned(script.job(f"job {seed}", seed=seed, client_id=client_id))
        assert task.deferrable == deferrable, client_id


def test_an_output_and_the_end_of_its_job_are_one_batch_so_history_never_shows_half():
    script = Script()
    script.replica("r1")
    [(_, task)] = assigned(script.job("a"))
    commands = script.report("r1", NodeFinished(task.id, "3", task.signatures["3"], {"images": ["x"]}))
    assert [type(c.change) for c in commands if isinstance(c, Persist)] == [OutputRecorded, TenantUsed, JobEnded]


def test_jobs_start_by_number_then_by_order_of_submission():
    script = Script()
    script.job("z came second", seed=1, number=5)
    script.job("first", seed=2, number=-1)
    script.job("a came third", seed=3, number=5)
    script.replica("r1")
    started = []
    for _ in range(3):
        [(_, task)] = assigned(script.commands)[-1:]
        started.append(task.id.job_id)
        script.run("r1", task)
    assert started == ["first", "z came second", "a came third"]


def test_a_replica_takes_no_more_tasks_than_its_slots():
    script = Script()
    script.replica("r1", slots=2)
    for n in range(3):
        script.job(f"j{n}", seed=n)
    assert len(assigned(script.commands)) == 2


def test_a_task_that_is_only_stored_any_more_lets_another_begin_and_is_tried_again_if_the_replica_is_lost():
    script = Script()
    script.replica("r1")
    [(_, first)] = assigned(script.job("a"))
    script.job("b", seed=2)
    assert script.machine.backlog("gpu")[:2] == (1, 1)
    [(_, second)] = assigned(script.report("r1", SlotReleased(first.id)))
    assert (second.id.job_id, script.machine.backlog("gpu")[:2]) == ("b", (0, 1))
    script.run("r1", second)
    assert script.machine.backlog("gpu")[:2] == (0, 1)
    again = assigned([*script.apply(ReplicaLost("r1")), *script.replica("r2")])
    assert [(name, task.id.job_id, task.id.attempt) for name, task in again] == [("r2", "a", first.id.attempt + 1)]


def test_losing_the_replica_makes_a_new_attempt_and_the_old_ones_answers_are_dropped():
    script = Script()
    script.replica("r1")
    [(_, first)] = assigned(script.job("a"))
    script.replica("r2")
    [(replica, second)] = assigned(script.apply(ReplicaLost("r1")))
    assert replica == "r2"
    assert second.id.attempt == first.id.attempt + 1
    assert script.report("r1", TaskFinished(first.id)) == []
    assert changes(script.report("r2", NodeFinished(first.id, "3", "save-0", {"images": []})), OutputRecorded) == []
    script.run("r2", second)
    assert events(script.commands, "a").count("success") == 1


def test_a_replica_that_joins_again_has_lost_what_it_ran():
    script = Script()
    script.replica("r1")
    [(_, first)] = assigned(script.job("a"))
    [(_, second)] = assigned(script.replica("r1"))
    assert second.id == task_id("a", attempt=first.id.attempt + 1)


def test_a_job_that_keeps_losing_replicas_on_which_it_runs_alone_is_given_up_with_the_reason():
    script = Script(max_attempts=3)
    script.job("a")
    for n in range(3):
        [(_, task)] = assigned(script.replica(f"r{n}"))
        script.report(f"r{n}", NodeStarted(task.id, "2"))
        script.apply(ReplicaLost(f"r{n}"))
    [end] = changes(script.commands, JobEnded)
    assert (end.state, end.failure.node, end.failure.class_type) == ("error", "2", "Sample")
    assert "the last of 3 replicas of pool gpu on which it ran alone" in end.failure.message


def test_no_number_of_replicas_lost_together_with_others_ends_a_job():
    script = Script(max_attempts=1)
    for n in range(9):
        script.job(f"j{n}", seed=n)
        script.job(f"k{n}", seed=-n)
    for n in range(20):
        script.replica(f"r{n}", slots=100)
        if len(script.machine.replicas[f"r{n}"].running) < 2:
            break
        script.apply(ReplicaLost(f"r{n}"))
    assert n == SHARED_LOSSES
    assert changes(script.commands, JobEnded) == []


def test_suspects_run_one_job_a_replica_and_let_nobody_in():
    script = Script()
    for seed, name in enumerate("ab"):
        script.job(name, seed=seed)
    for n in range(SHARED_LOSSES):
        script.replica(f"r{n}", slots=4)
        script.apply(ReplicaLost(f"r{n}"))
    script.job("new", seed=9)
    [(_, first)] = assigned(script.replica("r9", slots=4))
    assert script.machine.replicas["r9"].quarantined == first.id.job_id == "a"
    [(_, second)] = assigned(script.run("r9", first))
    assert second.id.job_id == "b"
    [(_, third)] = assigned(script.run("r9", second))
    assert third.id.job_id == "new"
    assert script.machine.replicas["r9"].quarantined is None


def test_a_suspect_waits_for_a_replica_to_clear_and_others_are_kept_off_it():
    script = Script()
    for name in ("a", "b"):
        script.job(name, seed=name)
    for n in range(SHARED_LOSSES):
        script.replica(f"r{n}", slots=4)
        script.apply(ReplicaLost(f"r{n}"))
    script.job("c", seed=3, number=-1)
    [(_, earlier)] = assigned(script.replica("r9", slots=4))
    assert earlier.id.job_id == "c"
    assert script.machine.replicas["r9"].quarantined == "a"
    assert assigned(script.job("d", seed=4)) == []
    [(_, alone)] = assigned(script.run("r9", earlier))
    assert alone.id.job_id == "a"


def test_a_suspect_is_demand_for_a_replica_of_its_own_and_takes_it_at_once():
    script = Script()
    script.replica("r1", slots=4)
    script.job("long", seed=1)
    assert assigned(script.job("a", seed=2, losses=SHARED_LOSSES)) == []
    assert replicas_by_count(script.machine.backlog("gpu"), slots=4) == 2
    [(name, alone)] = assigned(script.replica("r2", slots=4))
    assert (name, alone.id.job_id) == ("r2", "a")
    # It keeps its replica's other slots, so that none is ended under it.
    assert replicas_by_count(script.machine.backlog("gpu"), slots=4) == 2
    script.run("r2", alone)
    assert replicas_by_count(script.machine.backlog("gpu"), slots=4) == 1


def test_a_suspect_goes_on_once_the_one_before_it_has_left_another_pool():
    script = Script(TWO_POOLS)
    script.replica("c1", "cpu")
    script.replica("g1", "gpu")
    [(_, loads)] = assigned(script.job("a", seed=1, losses=SHARED_LOSSES))
    [(_, samples)] = assigned(script.run("c1", loads))
    # Of jobs that span pools one is kept apart at a time, and "a" is on g1 still.
    assert assigned(script.job("b", seed=2, losses=SHARED_LOSSES, number=-1)) == []
    assert [(name, task.id.job_id) for name, task in assigned(script.run("g1", samples))] == [("g1", "b")]


def test_a_replica_that_leaves_or_joins_again_counts_as_nobodys_failure():
    script = Script(max_attempts=1)
    script.job("a")
    script.replica("r1")
    script.replica("r1")
    script.apply(ReplicaLeft("r1"))
    [(_, task)] = assigned(script.replica("r2"))
    script.run("r2", task)
    assert events(script.commands, "a")[-1] == "success"
    assert changes(script.commands, JobLostReplica) == []


def test_a_job_is_not_alone_on_a_replica_that_checks_a_submission_or_stops_a_cancelled_job():
    script = Script(max_attempts=1)
    script.job("a")
    script.replica("r1")
    script.apply(ReplicaLost("r1", checking=True))
    script.replica("r2", slots=2)
    script.job("b", seed=1)
    script.apply(CancelAsked("b"))
    script.apply(ReplicaLost("r2"))
    assert [end.job_id for end in changes(script.commands, JobEnded)] == ["b"]
    assert changes(script.commands, JobLostReplica)[-1] == JobLostReplica("a", 2, 0)


def test_a_job_that_got_no_memory_runs_again_alone_and_fails_only_if_it_gets_none_there():
    script = Script()
    script.job("a")
    script.job("b", seed=1)
    [(_, first), (_, neighbour)] = assigned(script.replica("r1", slots=2))
    robbed = script.report("r1", TaskFailed(first.id, "2", "Sample", "MemoryError", "", (), out_of_memory=True))
    assert not changes(robbed, JobEnded)
    assert changes(robbed, JobLostReplica) == [JobLostReplica("a", SHARED_LOSSES, 0)]
    assert script.machine.jobs["a"].suspect
    [(_, alone)] = assigned(script.run("r1", neighbour))
    assert alone.id.job_id == "a"
    script.report("r1", TaskFailed(alone.id, "2", "Sample", "MemoryError", "", (), out_of_memory=True))
    assert events(script.commands, "a")[-1] == "error"


def test_a_restarted_scheduler_remembers_the_replicas_that_a_job_has_lost():
    script = Script(max_attempts=3)
    script.job("a", losses=7, lone_losses=2)
    script.replica("r1")
    script.apply(ReplicaLost("r1"))
    assert events(script.commands, "a")[-1] == "error"


def test_a_suspect_computes_what_another_job_is_computing_and_leaves_it_its_claim():
    script = Script()
    for name in ("a", "b"):
        script.job(name, seed=7 if name == "a" else 8)
    for n in range(SHARED_LOSSES):
        script.replica(f"r{n}", slots=4)
        script.apply(ReplicaLost(f"r{n}"))
    script.job("c", seed=7, number=-1)
    [(_, other)] = assigned(script.replica("r8"))
    [(_, suspect)] = assigned(script.replica("r9"))
    assert (other.id.job_id, suspect.id.job_id) == ("c", "a")
    assert suspect.remote == frozenset()
    assert script.machine.results.owner("save-7") == other.id


def test_a_node_that_raises_ends_the_job_with_its_error_and_frees_the_slot():
    script = Script()
    script.replica("r1")
    [(_, task)] = assigned(script.job("a", seed=1))
    script.job("b", seed=2)
    commands = script.report("r1", TaskFailed(task.id, "2", "Sample", "ValueError", "bad", ("trace",)))
    [end] = changes(commands, JobEnded)
    assert (end.state, end.failure.node, end.failure.message) == ("error", "2", "bad")
    assert [t.id.job_id for _, t in assigned(commands)] == ["b"]


def test_cancelling_a_waiting_job_ends_it_and_it_never_runs():
    script = Script()
    script.job("a")
    assert events(script.apply(CancelAsked("a")), "a") == ["cancelled"]
    assert assigned(script.replica("r1")) == []


def test_cancelling_a_running_job_interrupts_it_and_its_slot_frees_when_it_has_stopped():
    script = Script()
    script.replica("r1")
    [(_, task)] = assigned(script.job("a", seed=1))
    script.job("b", seed=2)
    commands = script.apply(CancelAsked("a"))
    assert sent(commands, Interrupt) == [("r1", Interrupt(task.id))]
    assert assigned(commands) == []
    assert [t.id.job_id for _, t in assigned(script.report("r1", TaskStopped(task.id)))] == ["b"]
    assert changes(script.report("r1", NodeFinished(task.id, "3", "s", {"images": []})), OutputRecorded) == []


def test_equal_work_is_answered_from_recorded_outputs_without_a_replica():
    script = Script()
    script.replica("r1")
    [(_, task)] = assigned(script.job("a", seed=7))
    script.run("r1", task)
    commands = script.job("b", seed=7)
    assert assigned(commands) == []
    assert events(commands, "b") == ["queued", "started", "cached", "executed", "success"]


def test_two_running_jobs_on_two_replicas_compute_an_equal_signature_once():
    script = Script()
    script.replica("r1")
    script.replica("r2")
    [(first_replica, first)] = assigned(script.job("a", seed=7))
    [(second_replica, second)] = assigned(script.job("b", seed=7))
    assert {first_replica, second_replica} == {"r1", "r2"}
    assert second.remote == {"save-7"}
    assert script.report(second_replica, Want(second.id, "save-7")) == []
    finished = NodeFinished(first.id, "3", "save-7", {"images": ["x"]})
    commands = script.report(first_replica, finished)
    assert sent(commands, Export) == [(first_replica, Export("save-7"))]
    commands = script.report(first_replica, Exported("save-7", "the value"))
    assert sent(commands, Deliver) == [(second_replica, Deliver("save-7", "the value"))]


def test_a_wanted_value_whose_maker_is_lost_is_computed_by_who_wanted_it():
    script = Script()
    script.replica("r1")
    script.replica("r2")
    script.job("a", seed=7)
    [(waiting, second)] = assigned(script.job("b", seed=7))
    script.report(waiting, Want(second.id, "save-7"))
    commands = script.apply(ReplicaLost("r1" if waiting == "r2" else "r2"))
    assert sent(commands, Compute) == [(waiting, Compute("save-7"))]


def test_a_wanted_value_whose_maker_fails_is_computed_by_who_wanted_it():
    script = Script()
    script.replica("r1")
    script.replica("r2")
    [(making, first)] = assigned(script.job("a", seed=7))
    [(waiting, second)] = assigned(script.job("b", seed=7))
    script.report(waiting, Want(second.id, "save-7"))
    commands = script.report(making, TaskFailed(first.id, "2", "Sample", "ValueError", "bad", ()))
    assert sent(commands, Compute) == [(waiting, Compute("save-7"))]


def test_an_output_that_is_recorded_is_not_computed_again_by_a_new_attempt():
    script = Script(graph=two_outputs)
    script.replica("r1")
    [(_, first)] = assigned(script.job("a", targets=("3", "4")))
    assert set(first.targets) == {"3", "4"}
    script.report("r1", NodeFinished(first.id, "3", first.signatures["3"], {"images": ["x"]}))
    script.apply(ReplicaLost("r1"))
    script.machine.results = Results()  # and nobody remembers what it showed
    [(_, second)] = assigned(script.replica("r2"))
    assert second.targets == ("4",)


def test_a_job_says_what_happened_to_it_lately():
    script = Script()
    script.job("a")
    [(_, task)] = assigned(script.replica("r1"))
    script.report("r1", NodeStarted(task.id, "2"))
    script.report("r1", NodeProgressed(task.id, "2", 1, 2))
    script.apply(ReplicaLost("r1"))
    assert [what for _, what in script.machine.trace("a")] == [
        "arrived",
        "replica r1 joined pool gpu",
        "NodeStarted 2 task 0.0 on r1",
        "ReplicaLost r1",
    ]
    script.apply(CancelAsked("a"))
    assert script.machine.trace("a") == []


def test_a_state_that_no_rule_allows_is_found():
    script = Script()
    script.replica("r1")
    script.job("a")
    script.machine.replicas["r1"].running.clear()
    assert ("a", "task 0 runs on r1, which does not know of it") in script.machine.check()
    script.machine.jobs["a"].tasks[0].state = "done"
    assert ("a", "every task is done and outputs are missing") in script.machine.check()


def test_a_wanted_value_that_was_let_go_is_computed_by_who_wanted_it():
    script = Script()
    script.replica("r1")
    [(_, task)] = assigned(script.job("a", seed=7))
    script.report("r1", NodeFinished(task.id, "2", "sample-7", None))
    script.replica("r2")
    [(replica, second)] = assigned(script.job("b", seed=7))
    assert replica == "r2"
    script.report("r1", TaskFailed(task.id, "3", "Save", "OSError", "disk full", ()))
    assert sent(script.report("r2", Want(second.id, "sample-7")), Export) == [("r1", Export("sample-7"))]
    assert sent(script.report("r1", Evicted(("sample-7",))), Compute) == [("r2", Compute("sample-7"))]


def test_a_job_cut_over_two_pools_runs_its_tasks_in_order_of_need():
    script = Script(TWO_POOLS)
    script.replica("g", "gpu")
    script.replica("c", "cpu", slots=4)
    script.job("a")
    for pool in ("cpu", "gpu", "cpu"):
        [(replica, task)] = assigned(script.commands)[-1:]
        assert script.machine.replicas[replica].info.pool == pool
        script.run(replica, task)
    assert events(script.commands, "a")[-1] == "success"


def test_values_lost_between_two_tasks_are_made_again_by_the_task_that_made_them():
    script = Script(TWO_POOLS)
    script.replica("g", "gpu")
    script.replica("c", "cpu")
    [(_, load)] = assigned(script.job("a"))
    script.run("c", load)
    [(_, sample)] = assigned(script.commands)[-1:]
    script.replica("g2", "gpu")
    script.run("g", sample)
    script.apply(ReplicaLost("c"))
    script.apply(ReplicaLost("g"))
    script.replica("c2", "cpu")
    for _ in range(10):
        pending = [(r, t) for r, t in assigned(script.commands) if script.machine.is_current(t.id)]
        if not pending:
            break
        script.run(*pending[-1])
    assert events(script.commands, "a")[-1] == "success"
    assert events(script.commands, "a").count("success") == 1


def test_a_task_goes_to_the_replica_that_holds_its_values_then_to_resident_weights():
    script = Script()
    script.replica("r1", slots=4)
    script.replica("r2", slots=4)
    script.report("r2", ResidentWeights(("checkpoints/a.safetensors",)))
    [(replica, task)] = assigned(script.job("a", seed=1))
    assert replica == "r2"
    script.report("r2", NodeFinished(task.id, "1", "load", None))
    script.report("r2", ResidentWeights(()))
    [(replica, _)] = assigned(script.job("b", seed=2))
    assert replica == "r2"


def test_a_cancelled_job_says_which_node_ran_and_what_had_run():
    script = Script()
    script.job("a")
    [(_, task)] = assigned(script.replica("r1"))
    script.report("r1", NodeStarted(task.id, "1"))
    script.report("r1", NodeFinished(task.id, "1", task.signatures["1"], None))
    script.report("r1", NodeStarted(task.id, "2"))
    [ended] = [c.event for c in script.apply(CancelAsked("a")) if isinstance(c, Publish)]
    assert ended.data == {"node": "2", "class_type": task.nodes["2"].class_type, "executed": ["1"]}


def test_a_task_that_waits_for_a_value_does_not_outlive_its_job():
    script = Script()
    script.replica("r1")
    script.replica("r2")
    script.job("a", seed=7)
    [(waiting, second)] = assigned(script.job("b", seed=7))
    script.apply(CancelAsked("b"))
    assert sent(script.report(waiting, Want(second.id, "save-7")), Interrupt) == [(waiting, Interrupt(second.id))]


def test_node_events_of_a_cancelled_job_are_dropped():
    script = Script()
    script.replica("r1")
    [(_, task)] = assigned(script.job("a"))
    script.apply(CancelAsked("a"))
    assert script.report("r1", NodeStarted(task.id, "2")) == []


def test_cursors_grow_across_epochs():
    from serve_app.scheduler.core.machine import Machine

    old, new = Machine(epoch=3, max_attempts=1), Machine(epoch=4, max_attempts=1)
    assert max(old.next_seq() for _ in range(1000)) < new.next_seq()


def test_a_job_that_cannot_be_recorded_ends_in_error_and_what_runs_of_it_is_stopped():
    script = Script()
    script.replica("r1")
    script.job("a")
    commands = script.apply(JobRefused("a", Failure(message="too long")))
    assert events(commands, "a") == ["error"]
    assert changes(commands, JobEnded) == [JobEnded("a", "error", 100.0, ANY, Failure(message="too long"))]
    assert sent(commands, Interrupt) == [("r1", Interrupt(task_id("a")))]


def test_an_end_that_could_not_be_recorded_is_reported_as_an_error():
    script = Script()
    script.replica("r1")
    [(_, task)] = assigned(script.job("a"))
    script.run("r1", task)
    commands = script.apply(JobRefused("a", Failure()))
    assert events(commands, "a") == ["error"]
    assert len(changes(commands, JobEnded)) == 1


def test_while_the_queue_is_paused_what_runs_goes_on_and_nothing_starts():
    script = Script()
    script.replica("r1", slots=2)
    [(_, running)] = assigned(script.job("a"))
    script.apply(PausesChanged(frozenset({THE_QUEUE})))
    assert assigned(script.job("b", seed=2)) == []
    assert script.machine.backlog("gpu")[:2] == (0, 1)
    assert events(script.run("r1", running), "a")[-1] == "success"
    assert [task.id.job_id for _, task in assigned(script.apply(PausesChanged(frozenset())))] == ["b"]


def test_a_started_job_whose_replica_is_lost_goes_on_although_the_queue_is_paused():
    script = Script()
    script.replica("r1")
    script.job("a")
    script.apply(PausesChanged(frozenset({THE_QUEUE})))
    script.apply(ReplicaLost("r1"))
    assert [task.id.job_id for _, task in assigned(script.replica("r2"))] == ["a"]


def test_a_waiting_task_obeys_a_later_pause_and_can_be_cancelled():
    script = Script()
    script.job("a")
    script.job("b", seed=2)
    script.apply(PausesChanged(frozenset({Pause("pool", "gpu")})))
    assert assigned(script.replica("r1")) == []
    assert events(script.apply(CancelAsked("a")), "a") == ["cancelled"]
    assert [task.id.job_id for _, task in assigned(script.apply(PausesChanged(frozenset())))] == ["b"]


def test_a_paused_pool_holds_back_the_jobs_that_will_need_it_and_no_others():
    script = Script(TWO_POOLS)
    script.apply(PausesChanged(frozenset({Pause("pool", "gpu")})))
    script.replica("c1", "cpu")
    assert assigned(script.job("both")) == []
    script.apply(PausesChanged(frozenset({Pause("pool", "elsewhere")})))
    assert [task.id.job_id for _, task in assigned(script.commands)] == ["both"]


def test_a_drained_replica_finishes_what_it_has_and_takes_no_more_until_that_is_undone():
    script = Script()
    script.job("a")
    [(_, task)] = assigned(script.replica("r1"))
    script.apply(PausesChanged(frozenset({Pause("replica", "r1")})))
    script.job("b", seed=2)
    assert "success" in events(script.run("r1", task), "a")
    assert [job.row.job_id for job in script.machine.jobs.values()] == ["b"]
    assert [task.id.job_id for _, task in assigned(script.apply(PausesChanged(frozenset())))] == ["b"]


def test_a_drained_host_gives_its_replicas_no_tasks_also_when_they_join_again():
    script = Script()
    script.job("a")
    script.apply(PausesChanged(frozenset({Pause("host", "h1")})))
    assert assigned(script.apply(ReplicaJoined(ReplicaInfo("r1", "gpu", 1), "h1"))) == []
    assert [replica for replica, _ in assigned(script.apply(ReplicaJoined(ReplicaInfo("r2", "gpu", 1), "h2")))] == [
        "r2"
    ]


def test_a_drained_host_with_a_rank_gives_its_replica_no_tasks():
    script = Script()
    script.job("a")
    spanning = ReplicaInfo("r1", "gpu", 1, rank_hosts=("h2",))
    script.apply(PausesChanged(frozenset({Pause("host", "h2")})))
    assert assigned(script.apply(ReplicaJoined(spanning, "h1"))) == []
    assert [replica for replica, _ in assigned(script.apply(PausesChanged(frozenset())))] == ["r1"]


def test_the_end_of_a_drained_replica_is_no_jobs_fault():
    script = Script()
    script.job("a")
    script.replica("r1")
    script.apply(PausesChanged(frozenset({Pause("replica", "r1")})))
    script.apply(ReplicaLost("r1", False, "its host was stopped"))
    assert script.machine.jobs["a"].lone_losses == 0


def test_a_paused_tenants_jobs_wait_while_others_run():
    script = Script()
    script.apply(PausesChanged(frozenset({Pause("tenant", "acme")})))
    script.job("held", tenant="acme")
    script.job("free", seed=2, tenant="other")
    assert [task.id.job_id for _, task in assigned(script.replica("r1", slots=2))] == ["free"]


def test_a_higher_priority_goes_before_any_number_and_within_one_the_number_decides():
    script = Script()
    for name, number, extra_data in [
        ("plain", -9, {}),
        ("low", -9, {"priority": -1}),
        ("second", 2, {"priority": 3}),
        ("first", 1, {"priority": 3}),
        ("of before priorities were looked at", 0, {"priority": "high"}),
    ]:
        script.job(name, seed=name, number=number, extra_data=extra_data)
    script.replica("r1")
    started = []
    for _ in range(5):
        [(_, task)] = assigned(script.commands)[-1:]
        started.append(task.id.job_id)
        script.run("r1", task)
    assert started == ["first", "second", "plain", "of before priorities were looked at", "low"]


def lone_loss(script: Script, job_id: str, replica: str, seed: object, tenant: str = "guilty") -> None:
    """Have a job of a tenant end a replica on which it runs alone, and finish on another."""
    script.replica(replica)
    [(_, first)] = assigned(script.job(job_id, seed=seed, tenant=tenant))
    script.apply(ReplicaLost(replica))
    [(_, again)] = assigned(script.replica(f"{replica} again"))
    assert again.id.job_id == first.id.job_id == job_id
    script.run(f"{replica} again", again)
    script.apply(ReplicaLeft(f"{replica} again"))


def test_jobs_of_a_tenant_that_killed_replicas_back_off_and_nobody_elses_do():
    script = Script()
    for n, wait_s in enumerate((5.0, 10.0, 20.0)):
        lone_loss(script, f"guilty {n}", f"r{n}", seed=f"g{n}")
        script.replica(f"s{n}", slots=4)
        assert assigned(script.job(f"waits {n}", seed=f"w{n}", tenant="guilty")) == []
        [(name, other)] = assigned(script.job(f"other {n}", seed=f"o{n}", tenant="innocent"))
        script.run(name, other)
        script.at_s += wait_s - 0.1
        assert assigned(script.apply(TimePassed())) == []
        script.at_s += 0.2
        [(name, task)] = assigned(script.apply(TimePassed()))
        assert task.id.job_id == f"waits {n}"
        script.run(name, task)
        script.apply(ReplicaLeft(f"s{n}"))


def test_from_its_second_loss_on_the_jobs_of_an_owner_run_alone_until_it_is_forgiven():
    script = Script()
    for n in range(2):
        lone_loss(script, f"guilty {n}", f"r{n}", seed=f"g{n}")
        script.at_s += 60.0
    script.replica("big", slots=4)
    script.replica("other", slots=4)
    [(kept, alone)] = assigned(script.job("g", seed="g", tenant="guilty"))
    assert script.machine.replicas[kept].quarantined == "g"
    [(name, _)] = assigned(script.job("i", seed="i", tenant="innocent"))
    assert name != kept
    script.run(kept, alone)
    script.at_s += 2000.0
    assert len(assigned(script.job("h", seed="h", tenant="guilty"))) == 1
    assert not script.machine.jobs["h"].suspect


def test_without_tenants_it_is_a_client_that_waits():
    script = Script()
    script.replica("r1")
    script.job("a", seed="a", client_id="me")
    script.apply(ReplicaLost("r1"))
    script.run("r2", assigned(script.replica("r2", slots=4))[0][1])
    assert assigned(script.job("b", seed="b", client_id="me")) == []
    assert len(assigned(script.job("c", seed="c", client_id="you"))) == 1
    assert len(assigned(script.job("d", seed="d"))) == 1


def test_a_replica_that_drains_takes_nothing_more_and_what_runs_there_is_charged_with_nothing():
    script = Script()
    script.replica("r1", slots=4)
    [(_, guilty)] = assigned(script.job("guilty", seed="g", tenant="guilty"))
    script.job("innocent", seed="i", tenant="innocent")
    script.apply(CancelAsked("guilty"))
    script.report("r1", TaskStopped(guilty.id))
    script.report("r1", Draining("guilty"))
    assert assigned(script.job("next", seed="n", tenant="innocent")) == []
    [(name, other)] = assigned(script.replica("r2"))
    assert (name, other.id.job_id) == ("r2", "next")
    script.run("r2", other)
    assert assigned(script.job("guilty too", seed="g2", tenant="guilty")) == [], "its tenant waits"
    lost = script.apply(ReplicaLost("r1"))
    assert changes(lost, JobLostReplica) == []
    [(name, again)] = assigned(lost)
    assert (name, again.id.job_id) == ("r2", "innocent")
    assert script.machine.jobs["innocent"].lone_losses == 0


def test_who_is_cancelled_while_its_node_goes_on_answers_for_the_end_of_the_replica_and_nobody_else():
    script = Script()
    script.replica("r1", slots=2)
    [(_, guilty)] = assigned(script.job("guilty", seed="g", tenant="guilty"))
    script.job("innocent", seed="i", tenant="innocent")
    script.apply(CancelAsked("guilty"))
    script.report("r1", NodesLinger(frozenset({("guilty", None)})))
    script.report("r1", TaskStopped(guilty.id))
    script.apply(ReplicaLost("r1"))
    innocent = script.machine.jobs["innocent"]
    assert (innocent.lone_losses, innocent.losses) == (0, 1), "it was not alone"
    script.apply(CancelAsked("innocent"))
    script.replica("r2", slots=2)
    assert assigned(script.job("g2", seed="g2", tenant="guilty")) == []
    assert len(assigned(script.job("i2", seed="i2", tenant="innocent"))) == 1


def test_who_is_cancelled_answers_no_longer_once_its_node_has_ended():
    script = Script()
    script.replica("r1", slots=2)
    script.report("r1", NodesLinger(frozenset({("slow", None)})))
    script.report("r1", NodesLinger(frozenset()))
    script.apply(ReplicaLost("r1"))
    script.replica("r2", slots=2)
    assert len(assigned(script.job("a", tenant="slow"))) == 1


def test_a_replica_whose_node_has_stopped_after_all_takes_tasks_again():
    script = Script()
    script.replica("r1", slots=2)
    script.report("r1", Draining(by_job=False))
    assert assigned(script.job("a")) == []
    [(name, _)] = assigned(script.report("r1", Reopened()))
    assert name == "r1"
    assert len(assigned(script.job("b", seed=2))) == 1, "nobody is to blame"


def test_an_owner_that_cancels_a_suspect_job_waits_as_if_it_had_ended_the_replica():
    script = Script()
    script.replica("r1", slots=2)
    script.job("guilty", seed="g", tenant="guilty")
    script.job("innocent", seed="i", tenant="innocent")
    script.apply(ReplicaLost("r1"))
    script.apply(CancelAsked("guilty"))
    [(name, innocent)] = assigned(script.replica("r2", slots=2))
    script.run(name, innocent)
    assert assigned(script.job("g2", seed="g2", tenant="guilty")) == []
    assert len(assigned(script.job("i2", seed="i2", tenant="innocent"))) == 1, "its job has succeeded"


def test_a_job_that_is_given_up_says_how_long_the_next_ones_wait():
    script = Script(max_attempts=1)
    script.replica("r1")
    script.job("a", tenant="guilty")
    [end] = changes(script.apply(ReplicaLost("r1")), JobEnded)
    assert end.failure.message.endswith("The next jobs of this tenant wait 5 s because of it")


def test_a_job_that_gets_no_memory_has_ended_no_replica_and_its_owner_does_not_wait():
    script = Script()
    script.replica("r1", slots=2)
    [(name, task)] = assigned(script.job("a", seed="a", tenant="poor"))
    for _ in range(2):
        out = TaskFailed(task.id, "2", "Sample", "MemoryError", "", (), out_of_memory=True)
        if again := assigned(script.report(name, out)):
            [(name, task)] = again
    assert "a" not in script.machine.jobs
    assert len(assigned(script.job("b", seed="b", tenant="poor"))) == 1


def ran(commands, job_id):
    """Return the nodes that clients were told of as run, and those as known already."""
    told = [c.event for c in commands if isinstance(c, Publish) and c.event.job_id == job_id]
    known = [node_id for event in told if event.kind == "cached" for node_id in event.data["nodes"]]
    return [event.data["node"] for event in told if event.kind == "executing"], known


def test_a_node_equal_to_a_running_one_is_reported_as_executed_with_it():
    script = Script(graph=twins)
    script.replica("r1")
    [(_, task)] = assigned(script.job("a"))
    commands = script.report("r1", NodeFinished(task.id, "1b", task.signatures["1b"], None))
    commands += script.report("r1", NodeFinished(task.id, "2", task.signatures["2"], None))
    assert ran(commands, "a") == (["1", "2b"], [])
    assert ran(script.report("r1", NodeFinished(task.id, "1", task.signatures["1"], None)), "a") == ([], [])


def test_ancestors_of_cached_nodes_are_reported_as_cached_too():
    script = Script()
    script.replica("r1")
    [(_, task)] = assigned(script.job("a", seed=7))
    script.run("r1", task)
    script.report("r1", Evicted(("load",)))
    assert ran(script.job("b", seed=7), "b")[1] == ["1", "2", "3"]
    assert ran(script.job("c", seed=8), "c")[1] == []


def test_a_pool_without_tasks_knows_when_a_job_is_expected_to_need_it():
    script = Script(TWO_POOLS)
    assert script.machine.backlog("gpu").next_s is None

    script.job("a")
    loading_and_saving = 2.0
    assert script.machine.backlog("gpu") == Demand(0, 0, {}, loading_and_saving)
    [(_, load)] = assigned(script.replica("r1", pool="cpu"))
    assert script.machine.backlog("gpu").next_s == loading_and_saving
    script.run("r1", load)
    assert script.machine.backlog("gpu").waiting == 1
    [(_, sample)] = assigned(script.replica("r2", pool="gpu"))
    [(_, save)] = assigned(script.run("r2", sample))

    assert script.machine.backlog("gpu").next_s is None, "what is left is no work of this pool"
    script.run("r1", save)
    assert script.machine.backlog("cpu").next_s is None


def test_a_job_that_may_not_start_has_no_pool_wait_for_it():
    script = Script(TWO_POOLS)
    script.apply(PausesChanged(frozenset({THE_QUEUE})))

    script.job("a")

    assert script.machine.backlog("gpu").next_s is None


def test_steps_that_another_replica_repeats_and_how_tasks_came_to_it_are_counted():
    script = Script()
    script.job("a")
    [(_, task)] = assigned(script.replica("r1"))
    script.replica("r2")

    def steps(replica: str, task: Task, *done: int) -> None:
        for report in (NodeStarted(task.id, "2"), *(NodeProgressed(task.id, "2", value, 50) for value in done)):
            script.report(replica, report)

    steps("r1", task, 30)
    [(_, again)] = assigned(script.apply(ReplicaLeft("r1")))
    steps("r2", again, 28, 29, 40)
    # One that joins again has dropped what it ran.
    [(_, lost)] = assigned(script.replica("r2"))
    steps("r2", lost, 40)
    assert script.machine.moves == {"lost": 1, "handed_over": 1, "steps": 2}


def test_nodes_that_a_replica_finds_stored_are_cached_in_the_jobs_record_too():
    script = Script()
    script.job("a")
    [(_, task)] = assigned(script.replica("r1"))
    commands = script.report("r1", NodesCached(task.id, ("1", "2")))
    assert [c.change for c in commands if isinstance(c, Persist)] == [JobCached("a", ("1", "2"))]
    assert events(commands, "a") == ["cached"]
    assert script.machine.jobs["a"].cached == ("1", "2")
