"""FineTuneJobs in bursts on a real API server: latencies, requests, processor time and memory of the operator.

python tests/bench/operator_burst.py [--jobs 100] [--queued 200] [--life] [--steady 100] [--json FILE] [--profile FILE]

Starts a control plane in a temporary folder and the operator with its default settings, and prints a table. First come
20 single jobs, each after the Job of the last one. `--queued` jobs wait in a queue that nothing admits. Then eight
clients create a burst of `--jobs`. With `--life` a stand-in for the kubelet (kubelet.py) starts once each has its Job,
and takes all to their end, some with a preemption. With `--steady`, so many jobs whose trainers never end are measured
for a minute, and 20 single ones in the meantime. At the end the operator is restarted, and all jobs are deleted.

Trainers answer at port 8080 of 127.0.0.0/8, which must be free (`unshare --net` gives a loopback device of its own).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from kube_api import ApiError, KubeApi, Object
from operator_process import Operator, seconds_of

from finetune_api import names

ROOT = Path(__file__).parents[2]
CONTROL_PLANE = [sys.executable, str(ROOT / "tests" / "cluster" / "cluster.py"), "control-plane"]
NAMESPACE = "bench"
JOBS = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/{names.PLURAL}"
CHILDREN = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
SPEC: Object = {
    "objective": "Chat",
    "model": {"uri": "s3://bucket/models/tiny"},
    "dataset": {"train": {"uri": "s3://bucket/data/rows.jsonl"}},
    "output": {"uri": "s3://bucket/jobs/one"},
}
QUIET_SECONDS = 30.0
SETTLE_SECONDS = 120.0
QUIET_REQUESTS = 5
"""Requests in three seconds."""
STEADY_SECONDS = 60.0
SINGLES = 20
CLIENTS = 8
"""Clients that create a burst: one alone waits for the API server, and hides what the operator could do."""
RUN_SECONDS = 10
PREEMPT_EVERY = 20
DEADLINE_SECONDS = 3 * 3600.0


@contextmanager
def control_plane() -> Iterator[Path]:
    """Start an API server with a Job controller and the CRD; return the administrator's kubeconfig."""
    with tempfile.TemporaryDirectory() as folder:
        up = [*CONTROL_PLANE, "up", "--dir", folder, "--controller-manager"]
        try:
            started = subprocess.run(up, check=True, stdout=subprocess.PIPE, text=True)
            kubeconfig = Path(started.stdout.strip())
            api, crds = KubeApi(kubeconfig), "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            crd = yaml.safe_load((ROOT / "crds" / "finetunejobs.yaml").read_text())
            api.call("POST", crds, crd)
            api.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
            account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
            for path in (JOBS, account):
                wait_until(lambda path=path: exists(api, path))  # type: ignore[misc]
            yield kubeconfig
        finally:
            subprocess.run([*CONTROL_PLANE, "down", "--dir", folder], check=True, stdout=subprocess.DEVNULL)


def exists(api: KubeApi, path: str) -> bool:
    try:
        api.call("GET", path)
    except ApiError:
        return False
    return True


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit("the deadline has passed")
        time.sleep(0.02)


@contextmanager
def kubelet(kubeconfig: Path) -> Iterator[None]:
    """Run the pods of all jobs."""
    options = ["--run-seconds", str(RUN_SECONDS), "--preempt-every", str(PREEMPT_EVERY)]
    program = [sys.executable, str(Path(__file__).with_name("kubelet.py")), str(kubeconfig), *options]
    process = subprocess.Popen(program)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


class Observer:
    """When something is first seen of each job and of its Jobs, from two watches."""

    def __init__(self, kubeconfig: Path) -> None:
        self.created: dict[str, float] = {}
        self.first: dict[str, dict[str, float]] = {
            what: {} for what in ("condition", "job", "job done", "training", "end", "succeeded")
        }
        self._api = KubeApi(kubeconfig)
        for watch in (self._watch_jobs, self._watch_children):
            threading.Thread(target=watch, daemon=True).start()

    def _watch_jobs(self) -> None:
        for event, job in self._api.watch(JOBS):
            now, name, status = time.monotonic(), job["metadata"]["name"], job.get("status") or {}
            if event == "DELETED":
                continue
            ends = {one["type"]: one["status"] for one in status.get("conditions") or []}
            self._note("condition", name, now, holds=bool(ends))
            self._note("training", name, now, holds=status.get("phase") == "Training")
            self._note("end", name, now, holds="True" in {ends.get("Complete"), ends.get("Failed")})
            self._note("succeeded", name, now, holds=ends.get("Complete") == "True")

    def _watch_children(self) -> None:
        for event, child in self._api.watch(CHILDREN):
            now, meta = time.monotonic(), child["metadata"]
            name = (meta.get("annotations") or {}).get(names.ANNOTATION_JOB_NAME)
            if event == "DELETED" or not name:
                continue
            self._note("job", name, now, holds=True)
            is_trainer = meta["labels"][names.LABEL_COMPONENT] == names.Component.TRAINER
            done = any(
                one["type"] in {"Complete", "Failed"} and one["status"] == "True"
                for one in child["status"].get("conditions") or []
            )
            self._note("job done", name, now, holds=is_trainer and done)

    def _note(self, what: str, name: str, now: float, *, holds: bool) -> None:
        if holds:
            self.first[what].setdefault(name, now)

    def wait(self, what: str, wanted: list[str]) -> None:
        """Wait until something was seen of each of these jobs."""
        wait_until(lambda: self.first[what].keys() >= set(wanted))

    def since(self, what: str, wanted: list[str], origin: dict[str, float] | None = None) -> list[float]:
        """Return, sorted, the seconds from the creation or from another time until something was seen."""
        before, found = self.created if origin is None else origin, self.first[what]
        return sorted(max(0.0, found[name] - before[name]) for name in wanted if name in found)


@dataclass
class Work:
    """Requests and processor seconds since the start of the processes."""

    requests: Counter[str]
    operator: float
    loop: float
    control_plane: dict[str, float]
    """By process: on a machine without free cores, it decides how fast a burst can be."""


class Bench:
    """The figures of one run, printed as they are measured."""

    def __init__(self, kubeconfig: Path, folder: Path, profile: Path | None) -> None:
        self.figures: Object = {}
        self._kubeconfig, self._log, self._profile = kubeconfig, folder / "operator.log", profile
        self._api = KubeApi(kubeconfig)
        self.operator = Operator(kubeconfig, self._log, profile)
        self._observer = Observer(kubeconfig)
        self._names: list[str] = []

    def record(self, name: str, value: Any) -> None:
        """Keep and print a figure."""
        self.figures[name] = value
        print(f"| {name} | {show(value)} |", flush=True)

    def create(self, prefix: str, count: int, clients: int = 1, **spec: Any) -> list[str]:
        """Create jobs without a wait; each client creates one after another."""

        def create_one(name: str) -> None:
            body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}}
            self._observer.created[name] = time.monotonic()
            self._api.call("POST", JOBS, body | {"spec": SPEC | spec})

        made = [f"{prefix}-{number}" for number in range(count)]
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(create_one, made))
        self._names += made
        return made

    def measure_singles(self, prefix: str, text: str) -> None:
        """Create jobs, each after the Job of the last one, and delete them."""
        made = []
        for number in range(SINGLES):
            (name,) = self.create(f"{prefix}{number}", 1)
            self._observer.wait("job", [name])
            self._observer.wait("condition", [name])
            made.append(name)
        self.record(f"{text}: first condition (s)", quantiles(self._observer.since("condition", made)))
        self.record(f"{text}: Job (s)", quantiles(self._observer.since("job", made)))
        for name in made:
            self._api.call("DELETE", f"{JOBS}/{name}")
        self._names = [name for name in self._names if name not in made]
        self.settle()

    def measure_idle(self, seconds: float, text: str) -> None:
        """Measure requests and processor time while nothing is created."""
        self.settle()
        before, used, began = self.operator.requests(), self.operator.processor_seconds, time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - began
        used = self.operator.processor_seconds - used
        made = self.operator.requests() - before
        self.record(f"{text}: requests/s", round(made.total() / elapsed, 2))
        self.record(f"{text}: cores", round(used / elapsed, 3))
        self.record(f"{text}: requests", dict(made.most_common()))

    def settle(self) -> None:
        """Wait until the operator makes as few requests as the progress of running jobs causes; two minutes at most."""
        deadline = time.monotonic() + SETTLE_SECONDS
        last, now = -1, self.operator.requests().total()
        while now - last > QUIET_REQUESTS and time.monotonic() < deadline:
            time.sleep(3)
            last, now = now, self.operator.requests().total()

    def measure_queued(self, count: int) -> None:
        """Let jobs wait in a queue that nothing admits."""
        self._observer.wait("job", self.create("queued", count, scheduling={"queueName": "none"}))
        self.measure_idle(QUIET_SECONDS, "queued jobs")

    def measure_burst(self, count: int) -> None:
        """Create jobs at once, and wait until each has its Job."""
        before = self._work()
        made = self.create("job", count, CLIENTS)
        self._observer.wait("job", made)
        self._observer.wait("condition", made)
        deadline = time.monotonic() + SETTLE_SECONDS  # the events are posted last
        posted = before.requests["POST events"] + count
        wait_until(lambda: self.operator.requests()["POST events"] >= posted or time.monotonic() > deadline)
        began, last = self._observer.created[made[0]], max(self._observer.first["job"][name] for name in made)
        self.record("burst: from the first job's creation until each has its Job (s)", round(last - began, 1))
        self.record("burst: first condition (s)", quantiles(self._observer.since("condition", made)))
        self.record("burst: Job (s)", quantiles(self._observer.since("job", made)))
        self._record_work("until its Job exists", count, before)

    def measure_life(self) -> None:
        """Let the kubelet take all jobs to their end, except for the queued ones."""
        made = [name for name in self._names if name.startswith("job-")]
        before, observer, began = self._work(), self._observer, time.monotonic()
        observer.wait("end", made)
        observer.wait("job done", made)
        self.settle()
        since = dict.fromkeys(made, began)
        self.record("from the kubelet's start to the end (s)", quantiles(observer.since("end", made, since)))
        done = observer.first["job done"]
        lag = observer.since("end", made, done)
        self.record("from the end of the trainer Job to that of the job (s)", quantiles(lag))
        self.record("jobs that succeeded", len(observer.first["succeeded"].keys() & set(made)))
        self._record_work("from its Job to its end", len(made), before)

    def measure_steady(self, count: int) -> None:
        """Let trainers run that never end."""
        self._observer.wait("training", self.create("endless", count))
        self.measure_idle(STEADY_SECONDS, "running jobs")
        self.measure_singles("endless-busy", "single job while the others run")

    def measure_restart(self) -> None:
        """Restart the operator with every job so far."""
        self.operator.stop()
        self.operator = Operator(self._kubeconfig, self._log, self._profile and self._profile.with_suffix(".restart"))
        self.record("restart: jobs", len(self._names))
        self.record("restart: ready (s)", round(self.operator.seconds_to_ready, 1))
        self.record("restart: processor seconds", round(self.operator.processor_seconds, 1))
        self.record("restart: requests until ready, without lists", dict(self.operator.requests_to_ready))
        self.settle()
        self.record("restart: requests until quiet, without lists", dict(self.operator.requests().most_common()))
        self.record("restart: resident memory (MiB)", round(self.operator.resident_mib))

    def _delete_jobs(self) -> None:
        """Delete all; the API server ends a request of more than a minute, and the next one goes on."""
        while True:
            try:
                self._api.call("DELETE", JOBS)
            except ApiError as error:
                if error.status != 504:
                    raise
            else:
                return

    def measure_deletion(self) -> None:
        """Delete all jobs."""
        began, used = time.monotonic(), self.operator.processor_seconds
        self._delete_jobs()
        wait_until(lambda: "finetune_job_info{" not in self.operator.metrics())
        self.record("deletion of all: operator without their series (s)", round(time.monotonic() - began, 1))
        self.settle()  # the garbage collector of Kubernetes takes longer
        self.record("deletion of all: processor seconds", round(self.operator.processor_seconds - used, 1))
        self.record_size("deletion of all")

    def stop(self) -> None:
        """End the operator."""
        self.operator.stop()

    def record_size(self, text: str) -> None:
        """Record memory and series."""
        lines = [line for line in self.operator.metrics().splitlines() if not line.startswith("#")]
        self.record(f"{text}: resident memory (MiB)", round(self.operator.resident_mib))
        self.record(f"{text}: series", len(lines))

    def _work(self) -> Work:
        spent = control_plane_seconds(self._kubeconfig)
        return Work(self.operator.requests(), self.operator.processor_seconds, self.operator.loop_seconds, spent)

    def _record_work(self, text: str, count: int, before: Work) -> None:
        after = self._work()
        made = after.requests - before.requests
        writes = sum(number for name, number in made.items() if not name.startswith("GET"))
        self.record(f"requests for each job {text}", {name: round(one / count, 2) for name, one in made.most_common()})
        self.record(f"writes for each job {text}", round(writes / count, 2))
        spent, own = after.operator - before.operator, after.loop - before.loop
        self.record(f"processor time for each job {text} (ms)", round(1000 * spent / count, 1))
        self.record(f"of that in the event loop {text} (ms)", round(1000 * own / count, 1))
        others = {
            name: round(1000 * (one - before.control_plane[name]) / count, 1)
            for name, one in after.control_plane.items()
        }
        self.record(f"of the control plane for each job {text} (ms)", others)


def control_plane_seconds(kubeconfig: Path) -> dict[str, float]:
    """Return the processor time of each process of the control plane."""
    pids = kubeconfig.parent / "pids"
    return {one.stem: seconds_of(json.loads(one.read_text())["pid"]) for one in sorted(pids.glob("*.json"))}


def show(value: Any) -> str:
    """Return a figure as text."""
    return ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)


def print_table(files: list[Path]) -> None:
    """Print the figures of several runs, one column each."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for name in dict.fromkeys(name for run in runs for name in run):
        print(f"| {name} | {' | '.join(show(run.get(name, '-')) for run in runs)} |")


def quantiles(times: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile of sorted times."""
    return {
        f"p{round(share * 100)}": round(times[min(len(times) - 1, int(share * len(times)))], 2)
        for share in (0.5, 0.99)
        if times
    }


def measure(chosen: argparse.Namespace) -> Object:
    """Run the parts that were asked for."""
    with ExitStack() as stack:
        kubeconfig = stack.enter_context(control_plane())
        bench = Bench(kubeconfig, kubeconfig.parent, chosen.profile)
        stack.callback(bench.stop)
        bench.record("date", f"{datetime.now(UTC):%Y-%m-%d}")
        bench.record("cores", len(os.sched_getaffinity(0)))
        bench.record("jobs", chosen.jobs)
        bench.record_size("no job")
        bench.measure_singles("single", "single job")
        if chosen.queued:
            bench.measure_queued(chosen.queued)
        bench.measure_burst(chosen.jobs)
        bench.record_size("after the burst")
        if chosen.life or chosen.steady:
            stack.enter_context(kubelet(kubeconfig))
            bench.measure_life()
            bench.record_size("after their end")
        if chosen.steady:
            bench.measure_steady(chosen.steady)
            bench.record_size("with running jobs")
        bench.measure_restart()
        bench.measure_deletion()
        return bench.figures


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--queued", type=int, default=0)
    parser.add_argument("--life", action="store_true", help="take the jobs of the burst to their end")
    parser.add_argument("--steady", type=int, default=0, help="and measure so many jobs whose trainers never end")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    parser.add_argument("--profile", type=Path, help="write a profile of the operator's event loop into this file")
    parser.add_argument("--table", type=Path, nargs="+", help="print a table of such files, and measure nothing")
    chosen = parser.parse_args()
    if chosen.table:
        print_table(chosen.table)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started
    figures = measure(chosen)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
