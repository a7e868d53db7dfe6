"""State kept in memory between events: bounded, and not needed for correctness after a restart."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from finetune_operator.controller.dependents import Dependents
from finetune_operator.controller.progress_budget import ProgressBudget
from finetune_operator.controller.store import Store
from finetune_operator.kube.objects import Key
from finetune_operator.kube.observed import Reading, Target
from finetune_operator.kube.pod import Pod

MAX_JOBS_WITH_ENDED_PODS = 4096
MAX_ENDED_BYTES = 32 * 1024 * 1024
MAX_ENDED_PODS_PER_JOB = 192
"""Three times the maximum number of pods that end together."""


@dataclass
class WatchCache:
    """The store, ended pods, running trainers with their last progress, and which job waits for which."""

    store: Store = field(default_factory=Store)
    doubted: set[Key] = field(default_factory=set)
    """Jobs to read from the API server at their next reconcile, because a write has shown that the store is old."""
    ended_pods: OrderedDict[Key, dict[str, Pod]] = field(default_factory=OrderedDict)
    targets: dict[Key, Target] = field(default_factory=dict)
    readings: dict[Key, Reading] = field(default_factory=dict)
    last_event: dict[str, float] = field(default_factory=dict)
    dependents: Dependents = field(default_factory=Dependents)
    budget: ProgressBudget = field(default_factory=ProgressBudget)
    clock: Callable[[], float] = time.monotonic
    expected: dict[Key, float] = field(default_factory=dict)
    """Since when a job's watch event is expected, because the operator has written the job."""
    writers: dict[Key, dict[str, str]] = field(default_factory=dict)
    """When each operator has last written a job's status, as first seen."""
    ended_bytes: int = 0
    """Size of the texts of all kept pods."""

    def record_event(self, resource: str) -> None:
        """Record the time of a resource's latest watch event."""
        self.last_event[resource] = time.time()

    def expect_event(self, key: Key) -> bool:
        """Expect a watch event of a job that is being written; return whether none was expected yet."""
        is_new = key not in self.expected
        self.expected.setdefault(key, self.clock())
        return is_new

    def confirm_event(self, key: Key) -> None:
        """Record that a job's watch event has arrived, or will not."""
        self.expected.pop(key, None)

    def silent_for(self) -> float:
        """Return for how many seconds the watch has not delivered an event that it should have."""
        return max(0.0, self.clock() - min(self.expected.values())) if self.expected else 0.0

    def find_other_writer(self, key: Key, writers: Mapping[str, str], own: str) -> str | None:
        """Return another operator that has written a job's status since this one has first read the job."""
        known = self.writers.get(key)
        self.writers[key] = dict(writers)
        if known is None:
            return None
        return next((name for name, at in writers.items() if name != own and known.get(name) != at), None)

    def keep_ended_pod(self, key: Key, pod: Pod) -> None:
        """Keep a pod's terminal state, because no later event may show it."""
        if not pod.counts_as_run:
            return
        pods = self.ended_pods.setdefault(key, {})
        self.ended_pods.move_to_end(key)
        known = pods.get(pod.uid)
        if known is None or known.exit_code is None or pod.exit_code is not None:
            self.ended_bytes += pod.text_bytes - (known.text_bytes if known else 0)
            pods[pod.uid] = pod
        while len(pods) > MAX_ENDED_PODS_PER_JOB:
            self.ended_bytes -= pods.pop(next(iter(pods))).text_bytes
        while len(self.ended_pods) > MAX_JOBS_WITH_ENDED_PODS or self.ended_bytes > MAX_ENDED_BYTES:
            self._drop_ended_pods(next(iter(self.ended_pods)))

    def _drop_ended_pods(self, key: Key) -> None:
        self.ended_bytes -= sum(pod.text_bytes for pod in self.ended_pods.pop(key, {}).values())

    def merge_ended_pods(self, key: Key, pods: Iterable[Pod]) -> tuple[Pod, ...]:
        """Return the listed pods, with the kept ones that are gone or that the list shows in an earlier state."""
        merged = {pod.uid: pod for pod in pods}
        for uid, ended in self.ended_pods.get(key, {}).items():
            is_proven = ended.exit_code is not None or not ended.is_gone
            if uid not in merged or (is_proven and not merged[uid].is_over):
                merged[uid] = ended
        return tuple(merged.values())

    def set_target(self, key: Key, target: Target | None) -> None:
        """Set the pod that a job's progress is polled from; None stops the polling."""
        if target is None:
            self.targets.pop(key, None)
        else:
            self.targets[key] = target

    def forget(self, key: Key) -> None:
        """Drop the state of a finished or deleted job, except its dependents, which follow the watch."""
        self._drop_ended_pods(key)
        self.confirm_event(key)
        self.writers.pop(key, None)
        self.targets.pop(key, None)
        self.readings.pop(key, None)
        self.budget.forget(key)
        self.doubted.discard(key)
