"""The jobs that wait for other jobs, and what those are like: from the watch, rebuilt at start."""

from collections import OrderedDict

from finetune_operator.kube.objects import FineTuneJob, Key
from finetune_operator.policy.dependencies import open_needs

MAX_JOBS = 2048
"""Jobs that others wait for and that are kept in memory, at about 20 KiB each; of more, the latest."""


class Dependents:
    """Waiting jobs by the jobs that they wait for, and the last state of the latter."""

    def __init__(self) -> None:
        self._waiting: dict[Key, set[Key]] = {}
        self._needs: dict[Key, frozenset[Key]] = {}
        self._jobs: OrderedDict[Key, FineTuneJob | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._needs)

    def __contains__(self, key: Key) -> bool:
        return key in self._jobs

    def __getitem__(self, key: Key) -> FineTuneJob | None:
        """Return the last state of a job that others wait for; None if there is no such job."""
        return self._jobs[key]

    def update(self, job: FineTuneJob) -> frozenset[Key]:
        """Store a job's state; return the jobs that wait for it if its UID, phase or reason changed."""
        self._set_needs(job.key, frozenset(Key(job.key.namespace, need.name) for need in open_needs(job)))
        before = self._jobs.get(job.key)
        self._keep(job.key, job)
        if before is not None and _state(before) == _state(job):
            return frozenset()
        return frozenset(self._waiting.get(job.key, ()))

    def remove(self, key: Key) -> frozenset[Key]:
        """Remove a deleted job; return the jobs that wait for it."""
        self._set_needs(key, frozenset())
        self._keep(key, None)
        return frozenset(self._waiting.get(key, ()))

    def add_read(self, key: Key, job: FineTuneJob | None) -> None:
        """Store what was read from the API server, unless the watch has shown the job since."""
        if key not in self._jobs:
            self._keep(key, job)

    def _keep(self, key: Key, job: FineTuneJob | None) -> None:
        if key in self._waiting:
            self._jobs[key] = job
            self._jobs.move_to_end(key)
            if len(self._jobs) > MAX_JOBS:
                self._jobs.popitem(last=False)

    def _set_needs(self, key: Key, needs: frozenset[Key]) -> None:
        for other in self._needs.pop(key, frozenset()) - needs:
            self._waiting[other].discard(key)
            if not self._waiting[other]:
                del self._waiting[other]
                self._jobs.pop(other, None)
        if needs:
            self._needs[key] = needs
        for other in needs:
            self._waiting.setdefault(other, set()).add(key)


def _state(job: FineTuneJob) -> tuple[str, str | None, str | None]:
    return job.uid, job.status.phase, job.status.reason
