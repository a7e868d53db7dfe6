"""Labels of what runs that another client overwrites, as `kubectl label --all --overwrite` does."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from job_operator import Operator
from job_world import World

from finetune_api import names

OTHERS = [{names.LABEL_MANAGED_BY: "Helm"}, {names.LABEL_JOB_NAME: "another"}]
"""Labels without which a watch or a list of the operator does not show a pod."""


class Bench:
    """A world with its operator, to which the watch of the pods delivers each event."""

    def __init__(self, world: World, loop: asyncio.AbstractEventLoop) -> None:
        self.world = world
        self.operator = Operator(world, loop)

    def step(self) -> None:
        """The operator looks, and the cluster works: only a trainer takes its time."""
        world = self.world
        self.operator.deliver_events()
        self.operator.look()
        world.control()
        for pod in world.pods_in("Pending"):
            world.start(pod)
        for pod in world.pods_in("Running"):
            if world.component(pod) == names.Component.PREFLIGHT:
                world.publish(pod)
        world.now += timedelta(seconds=5)

    def to_training(self) -> Any:
        """Bring the job to its trainer's pod, which runs."""
        for _ in range(5):
            self.step()
        (trainer,) = self.world.live_trainers()
        return self.world.pods[trainer]

    def assert_training(self) -> None:
        status = self.world.status()
        assert len(self.world.pods_in("Running")) == 1
        assert status.condition("Running").status == "True", status.message
        assert (status.runs, status.failures, status.preemptions) == (None, None, None)


@pytest.fixture
def bench() -> Iterator[Callable[[World], Bench]]:
    loop = asyncio.new_event_loop()
    yield lambda world: Bench(world, loop)
    loop.close()


@pytest.mark.parametrize("label", [names.LABEL_MANAGED_BY, names.LABEL_COMPONENT])
@pytest.mark.parametrize("hides_pods", [True, False])
def test_a_trainer_whose_labels_were_overwritten_trains_alone_to_its_end(
    bench: Any, hides_pods: bool, label: str
) -> None:
    one = bench(World())
    world, trainer = one.world, one.to_training()
    for obj in [*world.jobs.values(), *(world.pods.values() if hides_pods else ())]:
        world.relabel(obj, **{label: "Helm"})
    for _ in range(12):
        one.step()
        assert sorted(world.jobs) == ["one-1", "one-preflight"]
        one.assert_training()
    world.relabel(trainer, **{names.LABEL_COMPONENT: names.Component.TRAINER})  # which the world reads
    world.publish(trainer)
    for _ in range(3):
        one.step()
    assert (world.status().phase, world.status().runs, world.status().failures) == ("Succeeded", 1, None)


class Relabelling(World):
    """A cluster with an admission policy that overwrites a label of every pod."""

    def _make_pod(self, job: Any, rank: int) -> None:
        super()._make_pod(job, rank)
        (pod, *_) = reversed(self.pods.values())
        pod["metadata"]["labels"] = pod["metadata"]["labels"] | OTHERS[0]


def test_a_job_whose_pods_are_never_shown_succeeds(bench: Any) -> None:
    one = bench(Relabelling())
    trainer = one.to_training()
    one.step()
    one.assert_training()
    one.world.publish(trainer)
    for _ in range(3):
        one.step()
    assert (one.world.status().phase, one.world.status().runs) == ("Succeeded", 1)


@pytest.mark.parametrize("labels", OTHERS, ids=str)
def test_a_trainer_pod_that_no_watch_shows_is_not_interrupted_by_an_edit(bench: Any, labels: dict[str, str]) -> None:
    one = bench(World())
    trainer = one.to_training()
    one.world.relabel(trainer, **labels)
    one.step()
    one.world.edit(trainer={"imagePullPolicy": "Always"})
    for _ in range(12):
        one.step()
        one.assert_training()


@pytest.mark.parametrize("labels", OTHERS, ids=str)
def test_the_result_of_a_pod_that_no_watch_shows_counts(bench: Any, labels: dict[str, str]) -> None:
    one = bench(World(backoffLimit=0))
    trainer = one.to_training()
    one.world.relabel(trainer, **labels)
    for _ in range(3):
        one.step()
    one.world.publish(trainer)
    for _ in range(3):
        one.step()
    status = one.world.status()
    assert (status.phase, status.runs, status.preemptions) == ("Succeeded", 1, None)
    assert [run.result for run in status.history] == ["Succeeded"]


def test_the_failure_of_a_pod_that_no_watch_shows_counts_by_its_exit_code(bench: Any) -> None:
    one = bench(World(backoffLimit=3))
    trainer = one.to_training()
    one.world.relabel(trainer, **OTHERS[0])
    one.step()
    one.world.end(trainer, 137, reason="OOMKilled")
    for _ in range(3):
        one.step()
    (run,) = one.world.status().history
    assert (run.result, run.reason, run.exit_code) == ("Failed", "OutOfMemory", 137)


def test_a_pod_whose_labels_are_restored_is_read_from_memory_again(bench: Any) -> None:
    one = bench(World())
    trainer = one.to_training()
    one.world.relabel(trainer, **OTHERS[0])
    one.step()
    one.step()
    assert one.world.calls
    one.world.relabel(trainer, **{names.LABEL_MANAGED_BY: names.MANAGED_BY})
    one.step()
    one.step()
    one.assert_training()
    assert one.world.calls == 0


@pytest.mark.parametrize("is_before_its_end", [True, False])
def test_no_attempt_starts_while_a_pod_that_no_watch_shows_saves_its_checkpoint(
    bench: Any, is_before_its_end: bool
) -> None:
    """Its Job was deleted; the pod is in its grace period."""
    one = bench(World())
    trainer = one.to_training()
    if is_before_its_end:
        one.world.relabel(trainer, **OTHERS[0])
    one.world.remove_job("one-1")
    one.step()
    one.world.relabel(trainer, **OTHERS[0])
    for _ in range(12):
        one.step()
        assert len(one.world.live_trainers()) == 1
    one.world.end(trainer, 75, one.world.report("Preempted"))
    for _ in range(6):
        one.step()
    assert "one-2" in one.world.jobs


def test_a_pod_that_was_deleted_by_force_has_ended(bench: Any) -> None:
    one = bench(World())
    trainer = one.to_training()
    one.world.remove_by_force(trainer)
    for _ in range(3):
        one.step()
    status = one.world.status()
    assert [(run.result, run.reason) for run in status.history] == [("Preempted", "Unobserved")]
    assert len(one.world.live_trainers()) == 1
    assert status.condition("Running").status == "True"


def test_a_job_whose_trainer_job_is_in_the_lists_costs_no_request(bench: Any) -> None:
    one = bench(World())
    one.to_training()
    one.operator.look()
    one.operator.look()
    assert one.world.live_trainers()
    assert one.world.calls == 0
