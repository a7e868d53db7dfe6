"""The jobs that a waiting job builds on are read once from the API server, and then from the watch."""

import asyncio
import itertools
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
        self.others: dict[str, Any] = {}
        self.shown: dict[str, Any] = {}
        """Those that the watch has delivered."""
        self.reads: list[str] = []

    def objects(self, kind: str) -> list[Any]:
        return super().objects(kind) + (list(self.shown.values()) if kind == "finetunejobs" else [])

    async def get_job(self, key: Key) -> FineTuneJob:
        if key == KEY:
            return await super().get_job(key)
        self.reads.append(key.name)
        await asyncio.sleep(0)
        if key.name not in self.others:
            raise Gone(key.name)
        return FineTuneJob.from_object(self.others[key.name])


class Watched:
    """The operator, its world, and the events of the watch."""

    def __init__(self, loop: asyncio.AbstractEventLoop, scene: Callable[..., Any]) -> None:
        self.world = Family()
        self.operator = Operator(self.world, loop)
        self._scene = scene
        self._versions = itertools.count(100)

    def put(self, name: str, parent: str = "", *, seen: bool = True, **status: Any) -> None:
        """Create or change another job; the watch shows it unless it is broken."""
        one = self._scene(name, **({"lineage": {"parentRef": {"name": parent}}} if parent else {}))
        one.object["metadata"] |= {"uid": f"{name}-uid", "resourceVersion": str(next(self._versions))}
        one.object["status"] = {"observedGeneration": 1} | status
        self.world.others[name] = one.object
        if seen:
            self.world.shown[name] = one.object

    def delete(self, name: str, *, seen: bool = True) -> None:
        del self.world.others[name]
        if seen:
            del self.world.shown[name]

    def complete(self, name: str, *, seen: bool = True) -> None:
        done = {"type": "Complete", "status": "True", "reason": "R", "message": "", "lastTransitionTime": TIME}
        artifacts = {"uri": f"s3://bucket/{name}", "manifestSHA256": DIGEST}
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
    assert watched.world.calls == 0


def test_a_finished_parent_is_read_once_however_long_it_keeps_its_child_waiting(watched: Watched) -> None:
    failed = {"type": "Failed", "status": "True", "reason": "Diverged", "message": "", "lastTransitionTime": TIME}
    watched.put("sft", phase="Failed", conditions=[failed])
    assert watched.reconcile(times=100) == "ParentFailed"
    assert watched.world.reads in ([], ["sft"])


def test_a_parent_that_does_not_exist_is_found_when_it_is_created(watched: Watched) -> None:
    assert watched.reconcile(times=100) == "WaitingForParent"
    assert watched.world.reads == []
    watched.complete("sft")
    assert watched.reconcile(times=2) == "Accepted"


def test_what_is_pinned_is_read_from_the_api_server_in_that_moment(watched: Watched) -> None:
    watched.complete("sft")
    watched.delete("sft", seen=False)
    assert watched.reconcile() == "WaitingForParent"
    watched.complete("sft", seen=False)
    assert watched.reconcile(times=2) == "Accepted"


def test_a_change_that_the_watch_missed_is_found_with_the_next_list(watched: Watched) -> None:
    watched.put("sft", phase="Training")
    watched.complete("sft", seen=False)
    assert watched.reconcile() == "WaitingForParent"
    watched.world.shown = dict(watched.world.others)
    assert watched.reconcile(times=2) == "Accepted"
