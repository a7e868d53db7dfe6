"""Which job waits for which, so that a change of one wakes the others at once; rebuilt from the watch at start."""

from finetune_operator.kube.objects import FineTuneJob, Key
from finetune_operator.policy.dependencies import open_needs

State = tuple[str, str | None, str | None]
"""What a waiting job says of another: which object, in which phase, and why."""


class Dependents:
    """An index of waiting jobs by the jobs that they wait for."""

    def __init__(self) -> None:
        self._waiting: dict[Key, set[Key]] = {}
        self._needs: dict[Key, frozenset[Key]] = {}
        self._states: dict[Key, State] = {}

    def __len__(self) -> int:
        return len(self._needs)

    def update(self, job: FineTuneJob) -> frozenset[Key]:
        """Takes over a job as it is now; returns who waits for it, unless it looks to them as before."""
        self._set_needs(job.key, frozenset(Key(job.key.namespace, need.name) for need in open_needs(job)))
        state = (job.uid, job.status.phase, job.status.reason)
        if job.key not in self._waiting or self._states.get(job.key) == state:
            return frozenset()
        self._states[job.key] = state
        return frozenset(self._waiting[job.key])

    def remove(self, key: Key) -> frozenset[Key]:
        """Forgets a deleted job; returns who waits for it."""
        self._set_needs(key, frozenset())
        self._states.pop(key, None)
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
