"""Jobs whose trainers are killed and evicted in mid-training, and what must be true of them at the end."""

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import faults
from kubernetes.client.exceptions import ApiException
from user import Bench, Job

HYPERPARAMETERS = {
    "perDeviceTrainBatchSize": 4,
    "gradientAccumulationSteps": 1,
    "maxLength": 128,
    "learningRate": 1e-3,
}
SPEC: dict[str, Any] = {
    "tuning": {"method": "LoRA"},
    "resources": {"gpusPerNode": 0, "requests": {"cpu": "500m", "memory": "512Mi"}},
    "preflight": {"resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}},
    "backoffLimit": 10,
}


def spec(steps: int) -> dict[str, Any]:
    """A job of so many steps, which saves eight times."""
    pace = {"evaluation": {"steps": steps // 2}, "checkpoint": {"steps": max(1, steps // 8)}}
    return SPEC | pace | {"hyperparameters": HYPERPARAMETERS | {"maxSteps": steps}}


COUNTERS = ("attempts", "runs", "failures", "preemptions")
LONGEST_SECONDS = 1500.0


@dataclass(frozen=True)
class Result:
    """What a job is judged by: the loss in the status, and the trained weights."""

    eval_loss: float
    train_loss: float
    weights: str


@dataclass
class Victim:
    """One job, the faults that await it, and what was seen of it."""

    bench: Bench
    name: str
    steps: int
    plan: list[tuple[int, str]]
    kills: int = 0
    evictions: int = 0
    problems: list[str] = field(default_factory=list)
    result: Result | None = None
    seconds: float = 0.0
    status: dict[str, Any] = field(default_factory=dict)

    def live(self) -> None:
        """From creation to the end, with its faults."""
        began = time.monotonic()
        job = self.bench.apply(self.name, **spec(self.steps))
        hit: set[str] = set()
        while time.monotonic() - began < LONGEST_SECONDS:
            self._look(job)
            if self.status.get("phase") in {"Succeeded", "Failed"}:
                break
            if self.plan and self._strike(job, self.plan[0], hit):
                self.plan.pop(0)
            time.sleep(0.5)
        self.seconds = time.monotonic() - began
        self._judge(job)

    def _look(self, job: Job) -> None:
        try:
            found = job.status()
        except ApiException:
            return
        for name in COUNTERS:
            if found.get(name, 0) < self.status.get(name, 0):
                self.problems.append(f"{name} fell from {self.status[name]} to {found.get(name, 0)}")
        self.status = found

    def _strike(self, job: Job, fault: tuple[int, str], hit: set[str]) -> bool:
        """One fault for one pod, once that pod trains beyond the step."""
        step, kind = fault
        pods = [
            pod
            for pod in job.pods()
            if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp and pod.metadata.uid not in hit
        ]
        if not pods or not step <= faults.step_of(pods[0]) < self.steps:
            return False
        if not (faults.kill_process(pods[0]) if kind == "kill" else faults.evict(pods[0])):
            return False
        hit.add(pods[0].metadata.uid)
        self.kills += kind == "kill"
        self.evictions += kind == "evict"
        return True

    def _judge(self, job: Job) -> None:
        status = self.status
        if status.get("phase") != "Succeeded":
            self.problems.append(
                f"ended in phase {status.get('phase')}: {status.get('reason')} {status.get('message')}"
            )
            return
        jobs = [one.metadata.name for one in job.jobs()]
        if len(jobs) != status["attempts"]:
            self.problems.append(f"{len(jobs)} Jobs for {status['attempts']} attempts: {jobs}")
        counted = (status.get("failures", 0), status.get("preemptions", 0))
        # Kubernetes keeps nothing of an evicted pod; where no operator lived to see it, the next run tells.
        if counted != (self.kills, self.evictions):
            counted_as = f"{counted[0]} failures and {counted[1]} preemptions"
            self.problems.append(f"{self.kills} kills and {self.evictions} evictions counted as {counted_as}")
        prefix = status["artifacts"]["uri"].rstrip("/")
        manifest = self.bench.read(f"{prefix}/manifest.json")
        if hashlib.sha256(manifest).hexdigest() != status["artifacts"]["manifestSHA256"]:
            self.problems.append("the manifest is not the one that the status names")
        weights = {
            one["path"]: one["sha256"] for one in json.loads(manifest)["files"] if one["path"].endswith(".safetensors")
        }
        metrics = status["metrics"]
        self.result = Result(metrics["evalLoss"], metrics["trainLoss"], json.dumps(weights, sort_keys=True))


class Faults:
    """Deals out the trainers' faults: as many as are left for the jobs that are left, in random order."""

    def __init__(self, seed: int, kills: int, evictions: int, jobs: int, steps: int) -> None:
        self._random = random.Random(seed)
        self._deck = ["kill"] * kills + ["evict"] * evictions
        self._random.shuffle(self._deck)
        self._jobs, self._steps = jobs, steps

    @property
    def left(self) -> int:
        """Faults that no job has been given yet."""
        return len(self._deck)

    def take_back(self, victim: "Victim") -> None:
        """The faults that came too late for their job are for another one."""
        self._deck += [kind for _, kind in victim.plan]

    def deal(self) -> list[tuple[int, str]]:
        """The faults of the next job, each with the step from which on it strikes."""
        count = -(-len(self._deck) // max(self._jobs, 1))
        self._jobs -= 1
        dealt, self._deck = self._deck[:count], self._deck[count:]
        steps = sorted(self._random.randint(self._steps // 20, self._steps * 3 // 4) for _ in dealt)
        return list(zip(steps, dealt, strict=True))


def run_side_by_side(width: int, make: Callable[[], Victim | None], tell: Callable[[Victim], None]) -> list[Victim]:
    """Jobs from `make`, `width` at a time, until it gives none; every one that was started is in the answer."""
    lived: list[Victim] = []
    lock = threading.Lock()

    def lane() -> None:
        while True:
            with lock:
                victim = make()
                if victim is None:
                    return
                lived.append(victim)
            try:
                victim.live()
            except Exception as error:  # noqa: BLE001 -- a lane that dies unheard would look like a job that passed
                victim.problems.append(f"not followed to its end: {error!r}")
            tell(victim)

    lanes = [threading.Thread(target=lane) for _ in range(width)]
    for one in lanes:
        one.start()
    for one in lanes:
        one.join()
    return lived
