"""The operator is killed again and again while several jobs run through their lives, and nothing is lost or doubled."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

pytestmark = pytest.mark.nightly

KILLS = 12
COUNTERS = ("attempts", "runs", "failures", "preemptions", "activeSeconds")
LIVES = {"smooth": [0], "preempted": [75, 75, 0], "failing": [1, 0], "empty": ["no report", 0]}
"""How the trainers of each job end, one after another."""


@dataclass
class Kubelet:
    """Starts and ends the pods of all jobs, and watches over what their statuses say meanwhile."""

    world: Any
    ends: dict[str, list[Any]]
    random: random.Random
    is_over: threading.Event = field(default_factory=threading.Event)
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def work(self) -> None:
        while not self.is_over.wait(0.1):
            for pod in self.world.core.list_namespaced_pod(self.world.namespace).items:
                self._turn(pod)
            for name in self.ends:
                self._watch_over(name)

    def _turn(self, pod: Any) -> None:
        """Now and then the next thing happens to a pod."""
        name = pod.metadata.labels["finetune.dev/job-name"]
        if self.random.random() < 0.3 or pod.metadata.deletion_timestamp:
            return
        if pod.status.phase == "Pending":
            self.world.run(pod)
        elif pod.status.phase == "Running" and "preflight" in pod.metadata.name:
            self.world.end(pod, 0, self.world.validated(name))
        elif pod.status.phase == "Running":
            how = self.ends[name].pop(0)
            reports = {0: self.world.published, 75: lambda one: self.world.report("Preempted", one)}
            self.world.end(pod, 0 if how == "no report" else how, reports[how](name) if how in reports else "")

    def _watch_over(self, name: str) -> None:
        status, before = self.world.status(name), self.seen.get(name, {})
        fell = [one for one in COUNTERS if status.get(one, 0) < before.get(one, 0)]
        self.broken += [f"{name}: {one} fell" for one in fell]
        if status.get("phase") == "Succeeded" and not status.get("artifacts", {}).get("manifestSHA256"):
            self.broken.append(f"{name}: Complete without a manifest")
        if before.get("phase") == "Succeeded" and status != before:
            self.broken.append(f"{name}: changed after its end")
        self.seen[name] = status


def test_jobs_survive_an_operator_that_is_killed_at_random_moments(world: Any, operator: Any) -> None:
    chance = random.Random(1)
    for name in LIVES:
        world.create(name)
    kubelet = Kubelet(world, {name: list(ends) for name, ends in LIVES.items()}, random.Random(2))
    with ThreadPoolExecutor(1) as beside:
        work = beside.submit(kubelet.work)
        try:
            for _ in range(KILLS):
                time.sleep(chance.uniform(0, 1.2))
                operator.kill()
                operator.start()
            for name in LIVES:
                world.wait_phase("Succeeded", name)
        finally:
            kubelet.is_over.set()
        work.result()
    assert kubelet.broken == []
    counted = {name: [world.status(name).get(one, 0) for one in COUNTERS[:4]] for name in LIVES}
    assert counted == {
        "smooth": [1, 1, 0, 0], "preempted": [1, 3, 0, 2], "failing": [1, 2, 1, 0], "empty": [2, 2, 1, 0],
    }  # fmt: skip
    assert world.jobs() == sorted([*(f"{name}-{one}" for name in LIVES for one in ("1", "preflight")), "empty-2"])
    for name in LIVES:
        uids = [run["podUID"] for run in world.status(name)["history"]]
        assert len(uids) == len(set(uids))
