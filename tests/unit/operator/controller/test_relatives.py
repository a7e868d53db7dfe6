"""The jobs that a waiting job builds on are read once from the API server, and then from the watch."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from job_operator import Operator
from job_world import KEY, World

from finetune_operator.kube.errors import Gone
from finetune_operator.kube.objects import FineTuneJob, Key

DIGEST = "ab" * 32


class Family(World):
    """A world in which the job waits for another one, which may wait for further ones."""

    def __init__(self) -> None:
        super().__init__(lineage={"parentRef": {"name": "sft"}})
        self.others: dict[str, FineTuneJob] = {}
        self.reads: list[str] = []

    async def get_job(self, key: Key) -> FineTuneJob:
        if key == KEY:
            return await super().get_job(key)
        self.reads.append(key.name)
        await asyncio.sleep(0)
        if key.name not in self.others:
            raise Gone(key.name)
        return self.others[key.name]


class Watched:
    """The operator, its world, and the events of the watch."""

    def __init__(self, loop: asyncio.AbstractEventLoop, scene: Callable[..., Any]) -> None:
        self.world = Family()
        self.operator = Operator(self.world, loop)
        self._scene = scene
        self.operator.cache.dependents.update(self.world._job())

    def put(self, name: str, parent: str = "", *, seen: bool = True, **status: Any) -> FineTuneJob:
        """Create or change another job; the watch shows it unless it is broken."""
        one = self._scene(name, **({"lineage": {"parentRef": {"name": parent}}} if parent else {}))
        one.object["metadata"]["uid"] = f"{name}-uid"
        one.object["status"] = status
        job: FineTuneJob = one.job
        self.world.others[name] = job
        if seen:
            self.operator.cache.dependents.update(job)
        return job

    def delete(self, name: str, *, seen: bool = True) -> None:
        del self.world.others[name]
        if seen:
            self.operator.cache.dependents.remove(Key("team", name))

    def complete(self, name: str, *, seen: bool = True) -> None:
        done = {"type": "Complete", "status": "True", "reason": "R", "message": "", "lastTransitionTime": TIME}
        artifacts = {"uri": f"s3://bucket/{name}", "manifestSha256": DIGEST}
        self.put(name, seen=seen, phase="Succeeded", conditions=[done], artifacts=artifacts)

    def reconcile(self, times: int = 1) -> Any:
        for _ in range(times):
            self.operator.look()
        return {one["type"]: one for one in self.world.job["status"]["conditions"]}["Accepted"]["reason"]


TIME = "2026-03-01T12:00:00Z"


@pytest.fixture
def watched(scene: Callable[..., Any]) -> Any:
    loop = asyncio.new_event_loop()
    yield Watched(loop, scene)
    loop.close()


def test_a_waiting_job_reads_no_job_of_its_chain_however_often_it_is_reconciled(watched: Watched) -> None:
    watched.put("sft", "first", phase="Pending")
    watched.put("first", "zeroth", phase="Pending")
    watched.put("zeroth", phase="Training")
    assert watched.reconcile(times=100) == "WaitingForParent"
    assert watched.world.reads == []
    watched.world.calls = 0
    watched.reconcile()
    assert watched.world.calls == 3  # itself, its Jobs, its pods


def test_a_parent_that_was_there_before_its_child_is_read_once(watched: Watched) -> None:
    watched.put("sft", seen=False, phase="Training")
    assert watched.reconcile(times=100) == "WaitingForParent"
    assert watched.world.reads == ["sft"]


def test_a_parent_that_does_not_exist_is_asked_for_once_and_found_when_it_is_created(watched: Watched) -> None:
    assert watched.reconcile(times=100) == "WaitingForParent"
    assert watched.world.reads == ["sft"]
    watched.complete("sft")
    assert watched.reconcile(times=2) == "Accepted"


def test_what_is_pinned_is_read_from_the_api_server_in_that_moment(watched: Watched) -> None:
    watched.complete("sft")
    watched.delete("sft", seen=False)
    assert watched.reconcile() == "WaitingForParent"
    watched.complete("sft", seen=False)
    assert watched.reconcile(times=2) == "Accepted"


def test_a_change_that_the_watch_missed_is_found_after_the_next_resync(watched: Watched) -> None:
    watched.put("sft", phase="Training")
    watched.complete("sft", seen=False)
    assert watched.reconcile() == "WaitingForParent"
    watched.operator.cache.dependents.forget_jobs()
    assert watched.reconcile(times=2) == "Accepted"


def test_an_event_during_a_read_is_newer_than_the_answer(watched: Watched) -> None:
    watched.put("sft", seen=False, phase="Training")
    read = watched.world.get_job

    async def read_slowly(key: Key) -> FineTuneJob:
        found = await read(key)
        if key.name == "sft" and watched.world.others["sft"].status.phase == "Training":
            watched.complete("sft")
        return found

    watched.world.get_job = read_slowly  # type: ignore[method-assign]
    watched.reconcile()
    assert watched.reconcile(times=2) == "Accepted"
