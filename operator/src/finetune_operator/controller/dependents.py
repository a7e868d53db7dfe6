"""Index of the jobs that wait for other jobs, to reconcile them at once; rebuilt from the watch at start."""

from finetune_operator.kube.objects import FineTuneJob, Key
from finetune_operator.policy.dependencies import open_needs

State = tuple[str, str | None, str | None]
"""UID, phase and reason of a job that others wait for; they are reconciled when it changes."""


class Dependents:
    """Waiting jobs by the jobs that they wait for."""

    def __init__(self) -> None:
        self._waiting: dict[Key, set[Key]] = {}
        self._needs: dict[Key, frozenset[Key]] = {}
        self._states: dict[Key, State] = {}

    def __len__(self) -> int:
        return len(self._needs)

    def update(self, job: FineTuneJob) -> frozenset[Key]:
        """Store a job's state; return the jobs that wait for it if that state changed."""
        self._set_needs(job.key, frozenset(Key(job.key.namespace, need.name) for need in open_needs(job)))
        state = (job.uid, job.status.phase, job.status.reason)
        if job.key not in self._waiting or self._states.get(job.key) == state:
            return frozenset()
        self._states[job.key] = state
        return frozenset(self._waiting[job.key])

    def remove(self, key: Key) -> frozenset[Key]:
        """Remove a deleted job; return the jobs that wait for it."""
        self._set_needs(key, frozenset())
        return frozenset(self._waiting.get(key, ()))

    def _set_needs(self, key: Key, needs: frozenset[Key]) -> None:
        for other in self._needs.pop(key, frozenset()) - needs:
            self._waiting[other].discard(key)
            if not self._waiting[other]:
                del self._waiting[other]
                self._states.pop(other, None)
        if needs:
            self._needs[key] = needs
        for other in needs:
            self._waiting.setdefault(other, set()).add(key)
