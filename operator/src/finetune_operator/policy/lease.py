"""Leader election: whether to take, renew or wait for the Lease, by what was read and by the process's own clock."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_operator.kube.objects import Object

LEASE_SECONDS = 8
"""How long a Lease is valid after its renewal. A standby takes over within this time and one poll."""
POLL_SECONDS = 2.0
"""Pause between renewals, and between a standby's reads."""
LEAD_SECONDS = 6.0
"""How long after its last renewal a leader still writes: less than the Lease is valid."""
REQUEST_SECONDS = 1.5
"""How long a request for the Lease may take: after one without an answer, two more tries fit into `LEAD_SECONDS`."""
RETRY_SECONDS = 0.25
"""Pause after a renewal that failed."""
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass
class Election:
    """One process that wants a Lease.

    The times of the Lease were written by other clocks: a Lease counts as expired once this process has seen it
    unchanged for as long as it is valid.
    """

    name: str
    namespace: str
    identity: str
    _seen: Object = field(default_factory=dict)
    _seen_at: float = 0.0

    def observe(self, lease: Object | None, now: float) -> bool:
        """Record the Lease as read at `now` (monotonic seconds); return whether this process may take or renew it."""
        spec = (lease or {}).get("spec") or {}
        if spec != self._seen:
            self._seen, self._seen_at = spec, now
        holder = spec.get("holderIdentity") or ""
        if holder in {"", self.identity}:
            return True
        return self.seconds_left(now) < 0

    def seconds_left(self, now: float) -> float:
        """Return how long another holder's Lease is still valid if it is not renewed."""
        return float(self._seen.get("leaseDurationSeconds") or LEASE_SECONDS) - (now - self._seen_at)

    @property
    def holder(self) -> str:
        """Who held the Lease when it was last read; empty if it had no holder."""
        return str(self._seen.get("holderIdentity") or "")

    def claim(self, lease: Object | None, now: datetime) -> Object:
        """Return the Lease with this process as its holder from `now` on."""
        spec = dict((lease or {}).get("spec") or {})
        is_renewal = spec.get("holderIdentity") == self.identity
        moment = now.astimezone(UTC).strftime(_TIME)
        changes = spec.get("leaseTransitions") or 0
        return self._body(lease) | {
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": LEASE_SECONDS,
                "acquireTime": spec.get("acquireTime", moment) if is_renewal else moment,
                "renewTime": moment,
                "leaseTransitions": changes if is_renewal or not lease else changes + 1,
            }
        }

    def release(self, lease: Object) -> Object:
        """Return the Lease without a holder, so that a standby needs not wait until it expires."""
        spec = {key: value for key, value in lease["spec"].items() if key != "holderIdentity"}
        return self._body(lease) | {"spec": spec | {"leaseDurationSeconds": 1}}

    def _body(self, lease: Object | None) -> Object:
        metadata = (lease or {}).get("metadata") or {"name": self.name, "namespace": self.namespace}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
