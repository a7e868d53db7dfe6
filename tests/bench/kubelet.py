"""A stand-in for the kubelets of a control plane without nodes: its pods run, report progress, and end.

python tests/bench/kubelet.py KUBECONFIG [--run-seconds 10] [--preempt-every 20]: runs until SIGTERM. It reads a pod's
configuration as the kubelet mounts it, and writes the status that a kubelet and a trainer would: running, with an
address of 127.0.0.0/8 at which it answers `GET /progress`, and ended, with the report of a preflight or a training.
The first run of every so-many-th trainer is preempted, half of them with exit code 75 and half by an eviction.
"""

import argparse
import heapq
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson

sys.path += [str(Path(__file__).parents[1] / "fixtures")]

from kube_api import ApiError, KubeApi, Object
from pod_reports import build_report, container_status, published_blocks, validated_blocks

from finetune_api import handoff, names

WIRE_TIME = "%Y-%m-%dT%H:%M:%SZ"
PODS = f"/api/v1/pods?labelSelector={names.LABEL_MANAGED_BY}%3D{names.MANAGED_BY}"
THREADS = 12
PREFLIGHT_SECONDS = 1.0
ENDLESS = "endless-"
"""The trainers of jobs with this prefix never end."""
STEPS = 10_000


@dataclass(frozen=True)
class Run:
    """A pod whose container runs."""

    pod: Object
    config: Object
    ip: str
    started: float

    @property
    def path(self) -> str:
        meta = self.pod["metadata"]
        return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"

    def progress(self) -> bytes:
        """Return the answer to a poll: a step a second."""
        step = int(time.time() - self.started) + 1
        progress = {"step": step, "totalSteps": STEPS, "percent": 100 * step // STEPS, "stage": "Training"}
        body = {"jobUID": self.config["uid"], "podUID": self.pod["metadata"]["uid"], "heartbeat": step}
        return orjson.dumps(body | {"progress": progress, "metrics": {"trainLoss": 2.0 - step / STEPS}})


class ProgressServer(ThreadingHTTPServer):
    """The trainers' `GET /progress`, at every address of the loopback device: the address names the pod."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        runs = self.runs

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                run = runs.get(self.connection.getsockname()[0])
                body = run.progress() if run and self.path == handoff.PROGRESS_PATH else b""
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        super().__init__(("0.0.0.0", handoff.PROGRESS_PORT), Handler)

    def server_bind(self) -> None:
        """Listen on the loopback device only."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        super().server_bind()


class Clock:
    """Actions at a time, done by a few threads."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(THREADS)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), action))
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                action = heapq.heappop(self._due)[2]
            self._pool.submit(self._do, action)

    def _do(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            logging.exception("an action failed")


class Kubelet:
    """Takes every pod from its creation to its end."""

    def __init__(self, api: KubeApi, run_seconds: float, preempt_every: int) -> None:
        self._api = api
        self._run_seconds, self._preempt_every = run_seconds, preempt_every
        self._clock, self._progress = Clock(), ProgressServer()
        self._known: set[str] = set()
        self._gone: set[str] = set()
        self._trained: set[str] = set()
        """UIDs of the jobs that had a trainer."""
        self._trainers = itertools.count(1)
        self._addresses = itertools.count(1)

    def run(self) -> None:
        """Run forever."""
        for target in (self._clock.run, self._progress.serve_forever):
            threading.Thread(target=target, daemon=True).start()
        for event, pod in self._api.watch(PODS):
            uid = pod["metadata"]["uid"]
            if event == "DELETED":
                self._gone.add(uid)
            elif uid not in self._known and event == "ADDED" and pod["status"].get("phase") == "Pending":
                self._known.add(uid)
                self._clock.after(0, lambda pod=pod: self._start(pod))  # type: ignore[misc]

    def _start(self, pod: Object) -> None:
        volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
        meta, name = pod["metadata"], volumes["config"]["configMap"]["name"]
        try:
            mounted = self._api.call("GET", f"/api/v1/namespaces/{meta['namespace']}/configmaps/{name}")
        except ApiError as error:
            if error.status == 404:  # the job was deleted since
                return
            raise
        number = next(self._addresses)
        ip = f"127.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        run = Run(pod, orjson.loads(mounted["data"][handoff.CONFIG_FILE]), ip, time.time())
        now = _stamp(run.started)
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now}
        status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [scheduled]}
        self._progress.runs[ip] = run
        self._api.patch_status(run.path, status | container_status({"running": {"startedAt": now}}))
        if meta["labels"][names.LABEL_COMPONENT] == names.Component.PREFLIGHT:
            self._clock.after(PREFLIGHT_SECONDS, lambda: self._end(run, 0, "Validated", validated_blocks()))
        else:
            self._train(run)

    def _train(self, run: Run) -> None:
        """Let the trainer end as its job's name, its number and its earlier runs want."""
        uid = run.config["uid"]
        is_first, number = uid not in self._trained, next(self._trainers)
        self._trained.add(uid)
        if is_first and self._preempt_every and number % self._preempt_every == 0:
            is_eviction = bool(number // self._preempt_every % 2)
            self._clock.after(self._run_seconds / 2, lambda: self._preempt(run, is_eviction=is_eviction))
        elif not run.config["name"].startswith(ENDLESS):
            self._clock.after(self._run_seconds, lambda: self._end(run, 0, "Published", published_blocks()))

    def _preempt(self, run: Run, *, is_eviction: bool) -> None:
        if is_eviction:
            disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
            conditions = [disrupted | {"lastTransitionTime": _stamp()}]
            self._end(run, 143, "Preempted", {}, conditions=conditions)
        else:
            self._end(run, int(handoff.ExitCode.PREEMPTED), "Preempted", {})

    def _end(
        self, run: Run, code: int, outcome: str, blocks: Object, *, conditions: list[Object] | None = None
    ) -> None:
        self._progress.runs.pop(run.ip, None)
        if run.pod["metadata"]["uid"] in self._gone:
            return
        message = build_report(outcome, run.config["uid"], run.config["configSHA256"], **blocks)
        terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
        terminated |= {"startedAt": _stamp(run.started), "finishedAt": _stamp()}
        status = {"phase": "Failed" if code else "Succeeded", **container_status({"terminated": terminated})}
        self._api.patch_status(run.path, status | ({"conditions": conditions} if conditions else {}))


def _stamp(at: float | None = None) -> str:
    return time.strftime(WIRE_TIME, time.gmtime(at))


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kubeconfig", type=Path)
    parser.add_argument("--run-seconds", type=float, default=10)
    parser.add_argument("--preempt-every", type=int, default=20)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Kubelet(KubeApi(chosen.kubeconfig), chosen.run_seconds, chosen.preempt_every).run()


if __name__ == "__main__":
    main()
