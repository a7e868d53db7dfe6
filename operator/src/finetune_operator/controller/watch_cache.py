"""What the operator keeps in memory between events: bounded, and not needed for correctness after a restart."""

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from finetune_operator.controller.dependents import Families
from finetune_operator.kube.objects import Key, Object, Pod
from finetune_operator.kube.observed import Reading, Target

MAX_JOBS_WITH_ENDS = 4096
MAX_ENDS_PER_JOB = 192
"""Three times as many as the most pods that end together."""


@dataclass
class Memory:
    """Ends of pods, running trainers and their last answers, and who waits for whom."""

    ends: OrderedDict[Key, dict[str, Pod]] = field(default_factory=OrderedDict)
    targets: dict[Key, Target] = field(default_factory=dict)
    readings: dict[Key, Reading] = field(default_factory=dict)
    queued: dict[str, Key] = field(default_factory=dict)
    """By the UID of a Job that Kueue holds, the FineTuneJob to look at when its Workload changes."""
    last_event: dict[str, float] = field(default_factory=dict)
    families: Families = field(default_factory=Families)

    def saw(self, resource: str) -> None:
        """Notes that the watch of a resource is alive."""
        self.last_event[resource] = time.time()

    def keep_end(self, key: Key, body: Object, *, gone: bool) -> None:
        """Keeps the terminal state of a pod, which may be the last that anybody sees of it."""
        pod = Pod.from_object(body, gone=gone)
        if not pod.counts_as_run:
            return
        ends = self.ends.setdefault(key, {})
        self.ends.move_to_end(key)
        known = ends.get(pod.uid)
        if known is None or known.exit_code is None or pod.exit_code is not None:
            ends[pod.uid] = pod
        while len(ends) > MAX_ENDS_PER_JOB:
            del ends[next(iter(ends))]
        while len(self.ends) > MAX_JOBS_WITH_ENDS:
            self.ends.popitem(last=False)

    def with_ends(self, key: Key, pods: Iterable[Pod]) -> tuple[Pod, ...]:
        """The listed pods and the kept ends of those that are gone or were caught in a later state by an event."""
        merged = {pod.uid: pod for pod in pods}
        for uid, end in self.ends.get(key, {}).items():
            if uid not in merged or not merged[uid].is_over:
                merged[uid] = end
        return tuple(merged.values())

    def follow(self, key: Key, target: Target | None) -> None:
        """Sets, or ends, the pulling of a job's progress."""
        if target is None:
            self.targets.pop(key, None)
        else:
            self.targets[key] = target

    def expect(self, key: Key, job_uids: Iterable[str]) -> None:
        """Notes the Jobs whose Workloads matter to a FineTuneJob."""
        self.queued = {uid: other for uid, other in self.queued.items() if other != key}
        self.queued.update(dict.fromkeys(job_uids, key))

    def forget(self, key: Key) -> None:
        """Drops what is kept of a job that is finished or deleted; who waits for it is for the watch to say."""
        self.ends.pop(key, None)
        self.targets.pop(key, None)
        self.readings.pop(key, None)
        self.expect(key, ())
