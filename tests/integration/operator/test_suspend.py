"""A user suspends and resumes, on a real API server with the real Job controller; the test plays the kubelet."""

from typing import Any


def test_a_job_created_suspended_starts_when_it_may(world: Any, operator: Any, wait: Any) -> None:
    world.create(suspend=True)
    assert world.wait_phase("Suspended")["reason"] == "UserRequested"
    operator.kill()
    operator.start()
    assert world.jobs() == []
    world.patch_spec("one", {"suspend": False})
    wait(lambda: world.jobs() == ["one-preflight"], "the preflight Job")
    wait(lambda: world.events("Resumed"), "an event")


def test_a_repeated_event_is_one_event_that_is_counted(world: Any, operator: Any, wait: Any) -> None:
    world.create(suspend=True)
    for reason, is_suspended in (("UserRequested", False), ("NotSuspended", True), ("UserRequested", False)):
        world.wait_condition("Suspended", reason)
        world.patch_spec("one", {"suspend": is_suspended})

    def resumed() -> Any:
        found = world.core.list_namespaced_event(world.namespace, field_selector="reason=Resumed").items
        return next((one.series.count for one in found if one.series), None)

    assert wait(resumed, "a series") == 2
    assert len(world.events("Resumed")) == 1


def test_preflight_is_stopped_by_a_suspension_and_runs_again(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    pod = world.pod_of("one-preflight")
    world.bind(pod)
    world.run(pod)
    world.patch_spec("one", {"suspend": True})
    wait(lambda: world.is_told_to_end(pod), "a pod that is told to end")
    assert world.status()["phase"] == "Suspended"
    world.terminate(pod, 143)
    wait(lambda: world.pods() == [], "no pod")
    world.patch_spec("one", {"suspend": False})
    world.end(world.pass_preflight(), 0, world.published())
    assert world.wait_phase("Succeeded")["attempts"] == 1


def test_a_suspended_trainer_ends_counts_nothing_and_resumes_in_the_same_job(
    world: Any, operator: Any, wait: Any
) -> None:
    world.create()
    first = world.pass_preflight()
    world.bind(first)
    world.run(first)
    world.wait_phase("Training")
    world.patch_spec("one", {"suspend": True})
    wait(lambda: world.is_told_to_end(first), "a pod that is told to end")
    assert world.condition("Running")["reason"] == "Stopping"
    world.patch_spec("one", {"suspend": False})
    world.wait_condition("Suspended", "NotSuspended")
    assert [name for name in world.pods() if name.startswith("one-1")] == [first.metadata.name]
    wait(lambda: {"Suspended", "Resumed"} <= set(world.events()), "both events")  # a kill would lose one not yet posted
    operator.kill()
    operator.start()
    touched = world.touch(first)
    wait(lambda: operator.last_event("pods") > touched, "the watch of pods")  # an end before it is not observed
    world.terminate(first, 75, world.report("Preempted", lastStep=40))
    second = world.pod_of("one-1")
    assert second.metadata.uid != first.metadata.uid
    run = wait(lambda: world.status().get("history"), "the run in the history")[0]
    assert (run["result"], run["lastStep"]) == ("Suspended", 40)
    world.run(second)
    world.end(second, 0, world.published())
    status = world.wait_phase("Succeeded")
    assert (status["attempts"], status["runs"]) == (1, 2)
    assert (status.get("failures", 0), status.get("preemptions", 0)) == (0, 0)


def test_suspensions_in_quick_succession_move_no_counter(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    first = world.pass_preflight()
    world.run(first)
    world.wait_phase("Training")
    for _ in range(10):
        world.patch_spec("one", {"suspend": True})
        world.patch_spec("one", {"suspend": False})
    world.patch_spec("one", {"suspend": True})

    def is_at_rest() -> bool:
        """By the last request, and not in between: a pod of the time before would go a moment later."""
        job, child = world.get(), world.batch.read_namespaced_job("one-1", world.namespace)
        is_seen = job["status"]["observedGeneration"] == job["metadata"]["generation"]
        return is_seen and child.spec.suspend and not [name for name in world.pods() if name.startswith("one-1")]

    wait(is_at_rest, lambda: str(world.status()))
    world.patch_spec("one", {"suspend": False})
    trainer = world.pod_of("one-1")
    world.run(trainer)
    world.end(trainer, 0, world.published())
    status = world.wait_phase("Succeeded")
    assert (status["attempts"], status.get("failures", 0), status.get("preemptions", 0)) == (1, 0, 0)
    assert world.jobs() == ["one-1", "one-preflight"]


def test_an_operator_killed_in_a_suspension_still_counts_nothing(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    first = world.pass_preflight()
    world.bind(first)
    world.run(first)
    world.wait_phase("Training")
    world.patch_spec("one", {"suspend": True})
    wait(lambda: world.is_told_to_end(first), "a pod that is told to end")
    operator.kill()
    world.terminate(first, 137)
    operator.start()
    run = wait(lambda: (world.status().get("history") or [None])[0], "a run in the history")
    assert (run["result"], run["reason"]) == ("Suspended", "UserRequested")
    assert world.status()["phase"] == "Suspended"
    world.patch_spec("one", {"suspend": False})
    world.end(world.pod_of("one-1"), 0, world.published())
    status = world.wait_phase("Succeeded")
    assert (status.get("failures", 0), status.get("preemptions", 0)) == (0, 0)


def test_a_job_suspended_by_another_controller_is_not_resumed_by_the_operator(
    world: Any, operator: Any, wait: Any
) -> None:
    world.create()
    world.pass_preflight()
    world.batch.patch_namespaced_job("one-1", world.namespace, {"spec": {"suspend": True}})
    assert world.wait_phase("Queued")["reason"] == "JobSuspended"
    operator.kill()
    operator.start()
    assert world.batch.read_namespaced_job("one-1", world.namespace).spec.suspend is True
    world.batch.patch_namespaced_job("one-1", world.namespace, {"spec": {"suspend": False}})
    world.end(world.pod_of("one-1"), 0, world.published())
    world.wait_phase("Succeeded")
