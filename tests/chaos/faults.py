"""How things die on a real cluster: the operator's pod or its process, a trainer's process, a trainer by eviction."""

import json
import os
import random
import signal
import threading
import time
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from user import kubectl, process_of

SYSTEM = "finetune-system"
TRAINER_PORT = 8080
LEADER_SHARE = 0.75
LONGEST_HAND_OVER = 60.0


def kill_process(pod: Any) -> bool:
    """SIGKILL; whether there was a process to kill."""
    pid = process_of(pod)
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def evict(pod: Any) -> bool:
    """Through the eviction API; whether it was granted."""
    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod.metadata.name))
    try:
        client.CoreV1Api().create_namespaced_pod_eviction(pod.metadata.name, pod.metadata.namespace, eviction)
    except ApiException:
        return False
    return True


def step_of(pod: Any) -> int:
    """The step that the trainer itself names: the status may lag behind, its writer is being killed."""
    path = f"/api/v1/namespaces/{pod.metadata.namespace}/pods/{pod.metadata.name}:{TRAINER_PORT}/proxy/progress"
    answer = kubectl("get", "--raw", path, check=False).stdout
    try:
        return int(json.loads(answer)["progress"].get("step") or 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


class OperatorKiller(threading.Thread):
    """Kills the operator again and again, each time a random while after its container has started.

    Of several replicas, mostly the leader dies; the next kill waits until there is a leader again.
    """

    def __init__(self, seed: int, kills: int, longest_pause: float, replicas: int, until: threading.Event) -> None:
        super().__init__(daemon=True)
        self._random = random.Random(seed)
        self._kills, self._longest, self._until = kills, longest_pause, until
        self._replicas = replicas
        self.by_process, self.by_pod = 0, 0
        self.hand_overs: list[float] = []
        """Seconds from the death of a leader, while a standby was ready, to the next renewal of the Lease."""
        self.restarts: list[float] = []
        """The same while no standby was ready: another kill was too recent."""

    @property
    def done(self) -> int:
        """Kills so far."""
        return self.by_process + self.by_pod

    def run(self) -> None:
        """Until all kills are done, or the event is set."""
        while self.done < self._kills and not self._until.is_set():
            pod = self._victim()
            if pod is None:
                time.sleep(0.2)
                continue
            if self._until.wait(self._random.uniform(0, self._longest)):
                return
            leader = _read_lease() if self._replicas > 1 else None
            found = self.hand_overs if _is_another_ready(pod) else self.restarts
            self._kill(pod)
            if leader and pod.metadata.name in (leader.spec.holder_identity or ""):
                found.append(self._wait_for_leader(leader, pod))

    def _kill(self, pod: Any) -> None:
        # The kubelet starts a killed container again at once only the first time; after that the pod is replaced.
        if pod.status.container_statuses[0].restart_count == 0 and self._random.random() < 0.5:
            self.by_process += kill_process(pod)
            return
        gone = ("--grace-period=0", "--force", "--wait=false")
        done = kubectl("delete", "pod", pod.metadata.name, "-n", SYSTEM, *gone, check=False)
        self.by_pod += done.returncode == 0

    def _wait_for_leader(self, before: Any, pod: Any) -> float:
        """Return the seconds until the dead leader has a successor, or, started again in its pod, renews the Lease."""
        killed = time.monotonic()
        while process_of(pod) and time.monotonic() - killed < LONGEST_HAND_OVER:
            time.sleep(0.1)  # the kubelet ends the process of a pod that was deleted by force a little later
        died, seen = time.monotonic(), _read_lease() or before
        while not self._until.is_set() and time.monotonic() - died < LONGEST_HAND_OVER:
            now = _read_lease()
            if now and now.spec.holder_identity and now.spec.renew_time != seen.spec.renew_time:
                break
            time.sleep(0.1)
        return time.monotonic() - died

    def _victim(self) -> Any:
        """A replica to kill, of several three times in four the leader; none while they are not all there."""
        alive = [pod for pod in _operators() if process_of(pod)]
        if len(alive) < self._replicas:
            return None
        lease = _read_lease() if self._replicas > 1 else None
        holder = (lease.spec.holder_identity or "") if lease else ""
        leaders = [pod for pod in alive if pod.metadata.name in holder]
        others = [pod for pod in alive if pod not in leaders]
        choice = leaders if not others or (leaders and self._random.random() < LEADER_SHARE) else others
        return choice[0] if choice else None


def _operators() -> list[Any]:
    """The pods of the operator that are not being deleted; none if they cannot be read now."""
    selector = "app.kubernetes.io/component=operator"
    try:
        pods = client.CoreV1Api().list_namespaced_pod(SYSTEM, label_selector=selector).items
    except ApiException:
        return []
    return [pod for pod in pods if not pod.metadata.deletion_timestamp]


def _is_another_ready(pod: Any) -> bool:
    """Whether another pod of the operator is ready."""
    states = [one.status.conditions or [] for one in _operators() if one.metadata.uid != pod.metadata.uid]
    return any((state.type, state.status) == ("Ready", "True") for one in states for state in one)


def _read_lease() -> Any:
    """The operator's Lease; None if there is none, or if it cannot be read now."""
    try:
        return next(iter(client.CoordinationV1Api().list_namespaced_lease(SYSTEM).items), None)
    except ApiException:
        return None
