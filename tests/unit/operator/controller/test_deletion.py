"""A FineTuneJob that is being deleted, and what an earlier one of its name has left behind."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from job_operator import Operator
from job_world import KEY, World

from finetune_operator.cluster import Cluster
from finetune_operator.controller.workqueue import CONFLICT_DELAY
from finetune_operator.kube.errors import AlreadyExists, Gone
from finetune_operator.kube.objects import controller_of


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def operator(world: World) -> Iterator[Operator]:
    loop = asyncio.new_event_loop()
    yield Operator(world, loop)
    loop.close()


def start_training(world: World, operator: Operator) -> None:
    for _ in range(2):
        operator.look()
        world.control()
        world.start(world.pods_in("Pending")[0])
        if world.jobs.keys() == {"one-preflight"}:
            world.publish(world.pods_in("Running")[0])
            world.control()
    operator.look()


def delete(world: World, *finalizers: str) -> None:
    """Delete the job, which others keep with their finalizers."""
    world.job["metadata"] |= {"deletionTimestamp": world.stamp(), "finalizers": list(finalizers)}
    world.version += 1


def test_nothing_is_created_for_a_job_that_is_being_deleted(world: World, operator: Operator) -> None:
    delete(world, "example.com/backup")
    operator.look()
    assert world.jobs == {}
    assert world.status().conditions is None


def test_a_job_that_is_being_deleted_gives_its_gpus_back(world: World, operator: Operator) -> None:
    start_training(world, operator)
    assert "one-1" in world.jobs
    delete(world, "example.com/backup")
    operator.look()
    assert world.jobs == {}
    assert all("deletionTimestamp" in pod["metadata"] for pod in world.pods_in("Running"))


def test_a_job_that_is_deleted_without_its_children_leaves_them_alone(world: World, operator: Operator) -> None:
    start_training(world, operator)
    delete(world, "orphan")
    operator.look()
    assert "one-1" in world.jobs


def orphan(world: World, name: str) -> None:
    """Keep a Job, but remove its owner, as a deletion with `--cascade=orphan` does."""
    world.jobs[name]["metadata"]["ownerReferences"] = []


@pytest.mark.parametrize("runs", [True, False])
def test_a_job_without_an_owner_is_a_conflict_with_its_fix(world: World, operator: Operator, runs: bool) -> None:
    start_training(world, operator)
    for name in list(world.jobs):
        orphan(world, name)
    if runs:
        del world.jobs["one-preflight"]
    else:
        del world.jobs["one-1"]
        world.pods.clear()
    kept = "one-1" if runs else "one-preflight"
    world.job["metadata"]["uid"] = "uid-new"
    world.job["status"] = {"observedGeneration": -1}
    operator.restart()
    for _ in range(3):
        operator.look()
    found: Any = world.status().condition("Accepted")
    assert (found.status, found.reason) == ("False", "NameConflict")
    assert f"Job {kept} has no owner" in found.message
    assert "or a backup restored it" in found.message
    assert "remove it; the job then continues" in found.message
    assert world.status().eligible_time is not None
    world.remove_job(kept)
    world.pods.clear()
    operator.look()
    assert list(world.jobs) == ["one-preflight"]


class Collected(World):
    """An API server on which the ConfigMap of an earlier job exists at the POST, and is collected before the GET."""

    is_collected = False

    async def create_child(self, job: Any, child: Any) -> Any:
        if self.is_collected:
            return await super().create_child(job, child)
        self.is_collected = True
        cluster = object.__new__(Cluster)

        async def call(verb: str, path: str, **_: Any) -> Any:
            raise AlreadyExists(path) if verb == "POST" else Gone(path)

        cluster._call = call  # type: ignore[assignment, method-assign]
        return await cluster.create_child(job, child)


def test_a_job_whose_name_is_freed_while_its_objects_are_created_gets_them_at_the_next_attempt() -> None:
    world, loop = Collected(), asyncio.new_event_loop()
    operator = Operator(world, loop)

    async def reconcile() -> None:
        key = await operator.queue.get()
        await operator.reconciler.handle(key)
        operator.queue.done(key)

    loop.run_until_complete(reconcile())
    world.now += timedelta(seconds=CONFLICT_DELAY)
    loop.run_until_complete(asyncio.wait_for(reconcile(), 30))
    loop.close()
    assert list(world.jobs) == ["one-preflight"]


class Uncollected(World):
    """An API server on which the Job of an earlier job of this name still exists."""

    async def create_child(self, job: Any, child: Any) -> Any:
        if child.name not in self.jobs:
            return await super().create_child(job, child)
        cluster = object.__new__(Cluster)

        async def call(verb: str, path: str, **_: Any) -> Any:
            if verb == "POST" and path.endswith("/jobs"):
                raise AlreadyExists(path)
            return self.jobs[child.name]

        cluster._call = call  # type: ignore[assignment, method-assign]
        return await cluster.create_child(job, child)


def test_a_job_that_is_created_again_waits_for_the_earlier_ones_job_and_no_longer() -> None:
    world, loop = Uncollected(), asyncio.new_event_loop()
    operator = Operator(world, loop)

    def work(seconds: float) -> None:
        """Let the time pass, and look as often as the queue asks for it."""
        until = world.now + timedelta(seconds=seconds)
        while world.now < until:
            while not operator.queue.is_idle():
                key = loop.run_until_complete(operator.queue.get())
                loop.run_until_complete(operator.reconciler.handle(key))
                operator.queue.done(key)
            world.pass_time(0.1)

    work(1)
    (old_job,), (old_child,) = world.objects("finetunejobs"), world.objects("jobs")
    operator.intake.remove("finetunejobs", old_job)
    world.job["metadata"] |= {"uid": "uid-1", "creationTimestamp": world.stamp()}
    world.job["status"] = {"observedGeneration": -1}
    world.version += 1
    operator.sync(["finetunejobs"])
    work(2)
    running: Any = world.status().condition("Running")
    assert world.status().reason != "NameConflict"
    assert (running.reason, "one-preflight of an earlier run" in running.message) == ("BackingOff", True)
    world.remove_job("one-preflight")
    operator.intake.remove("jobs", old_child)
    work(1)
    assert [controller_of(one)["uid"] for one in world.jobs.values()] == ["uid-1"]
    loop.close()


def test_the_configmaps_of_a_finished_job_without_jobs_are_removed_after_a_restart_too() -> None:
    world, loop = World(ttlSecondsAfterFinished=3600), asyncio.new_event_loop()
    operator = Operator(world, loop)
    start_training(world, operator)
    world.publish(world.pods_in("Running")[0])
    world.control()
    operator.look()
    assert world.is_finished
    world.remove_ended_jobs()  # as a TTL that a policy sets
    world.pass_time(1800)
    operator.restart()
    assert (operator.queue.is_idle(), len(world.configs)) == (True, 2)
    world.pass_time(1801)
    assert not operator.queue.is_idle()
    loop.run_until_complete(operator.reconciler.handle(KEY))
    loop.close()
    assert world.configs == {}
