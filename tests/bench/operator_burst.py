"""A burst of FineTuneJobs on a real API server: time to the first condition and the first Job, requests and memory.

python tests/bench/operator_burst.py [--jobs 300] [--queued 0]: starts a control plane in a temporary folder and the
operator with its default settings, and prints a table. No kubelet runs, so every job stays in preflight. `--queued`
jobs wait in a queue before the burst begins; nothing admits them.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

from finetune_api import names

ROOT = Path(__file__).parents[2]
CONTROL_PLANE = [sys.executable, str(ROOT / "tests" / "cluster" / "cluster.py"), "control-plane"]
NAMESPACE = "bench"
SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "s3://bucket/models/tiny"},
    "dataset": {"train": {"uri": "s3://bucket/data/rows.jsonl"}},
    "output": {"uri": "s3://bucket/jobs/one"},
}
QUIET_SECONDS = 30


@contextmanager
def control_plane() -> Iterator[Path]:
    """Start an API server with a Job controller and the CRD; return the administrator's kubeconfig."""
    with tempfile.TemporaryDirectory() as folder:
        up = [*CONTROL_PLANE, "up", "--dir", folder, "--controller-manager"]
        started = subprocess.run(up, check=True, stdout=subprocess.PIPE, text=True)
        kubeconfig = Path(started.stdout.strip())
        try:
            crd = yaml.safe_load((ROOT / "crds" / "finetunejobs.yaml").read_text())
            with config.new_client_from_config(str(kubeconfig)) as api:
                client.ApiextensionsV1Api(api).create_custom_resource_definition(crd)
            time.sleep(3)  # until it is served; the operator waits for that too
            yield kubeconfig
        finally:
            subprocess.run([*CONTROL_PLANE, "down", "--dir", folder], check=True, stdout=subprocess.DEVNULL)


class Operator:
    """The operator's process, and its own metrics."""

    def __init__(self, kubeconfig: Path, log: Path, **settings: str) -> None:
        with socket.socket() as first, socket.socket() as second:
            for one in (first, second):
                one.bind(("127.0.0.1", 0))
            self.port, health = (one.getsockname()[1] for one in (first, second))
        env = os.environ | {
            "KUBECONFIG": str(kubeconfig),
            "FINETUNE_TRAINER_IMAGE": "registry.example/trainer:1",
            "FINETUNE_METRICS_PORT": str(self.port),
            "FINETUNE_HEALTH_PORT": str(health),
            **settings,
        }
        with log.open("wb") as file:
            self.process = subprocess.Popen([sys.executable, "-m", "finetune_operator"], env=env, stderr=file)
        while self._read(health, "/readyz") is None:
            time.sleep(0.1)

    def _read(self, port: int, path: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return None

    def metrics(self) -> str:
        """Return the text of a scrape."""
        return self._read(self.port, "/metrics") or ""

    def requests(self) -> Counter[str]:
        """Return the requests so far, by verb."""
        text = self.metrics()
        found: Counter[str] = Counter()
        for verb, count in re.findall(r'api_requests_total\{code="\w+",verb="(\w+)"\} (\S+)', text):
            found[verb] += int(float(count))
        return found

    @property
    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    @property
    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


class Burst:
    """FineTuneJobs that are created one after another, and when something is first seen of each."""

    def __init__(self, kubeconfig: Path) -> None:
        api = config.new_client_from_config(str(kubeconfig))
        self.custom, self.batch = client.CustomObjectsApi(api), client.BatchV1Api(api)
        client.CoreV1Api(api).create_namespace({"metadata": {"name": NAMESPACE}})
        self.created: dict[str, float] = {}

    def create(self, prefix: str, count: int, **spec: Any) -> None:
        for number in range(count):
            name = f"{prefix}-{number}"
            body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}}
            body |= {"spec": SPEC | spec}
            self.custom.create_namespaced_custom_object(*self._where, body)
            self.created[name] = time.monotonic()

    @property
    def _where(self) -> tuple[str, str, str, str]:
        return names.GROUP, names.VERSION, NAMESPACE, names.PLURAL

    def wait(self, prefix: str, seconds: float = 1200) -> tuple[list[float], list[float]]:
        """Return, sorted, the seconds until each job has a condition, and until it has a Job."""
        wanted = {name for name in self.created if name.startswith(f"{prefix}-")}
        conditions: dict[str, float] = {}
        jobs: dict[str, float] = {}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not wanted <= conditions.keys() & jobs.keys():
            found = self.custom.list_namespaced_custom_object(*self._where)["items"]
            now = time.monotonic()
            for one in found:
                if (one.get("status") or {}).get("conditions"):
                    conditions.setdefault(one["metadata"]["name"], now)
            for child in self.batch.list_namespaced_job(NAMESPACE).items:
                jobs.setdefault(child.metadata.annotations[names.ANNOTATION_JOB_NAME], now)
            time.sleep(0.2)
        return self._since_creation(conditions, wanted), self._since_creation(jobs, wanted)

    def _since_creation(self, times: dict[str, float], wanted: set[str]) -> list[float]:
        return sorted(times[name] - self.created[name] for name in wanted & times.keys())


def show(name: str, times: list[float]) -> None:
    at = {share: times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.99)} if times else {}
    print(f"{name:<40}" + "".join(f"  p{share * 100:.0f} {seconds:6.1f} s" for share, seconds in at.items()))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--queued", type=int, default=0)
    chosen = parser.parse_args()
    with control_plane() as kubeconfig:
        burst, operator = Burst(kubeconfig), Operator(kubeconfig, kubeconfig.parent / "operator.log")
        try:
            burst.create("queued", chosen.queued, scheduling={"queueName": "none"})
            burst.wait("queued")
            before = operator.requests()
            time.sleep(QUIET_SECONDS)
            made = operator.requests() - before
            print(f"requests in {QUIET_SECONDS} s with {chosen.queued} queued jobs: {made.total()}")
            before = operator.requests()
            burst.create("job", chosen.jobs)
            conditions, jobs = burst.wait("job")
            show(f"first condition of {len(conditions)} jobs", conditions)
            show(f"first Job of {len(jobs)} jobs", jobs)
            time.sleep(QUIET_SECONDS)  # for the events that are posted last
            made = operator.requests() - before
            print("requests for each job: " + json.dumps({v: round(c / chosen.jobs, 1) for v, c in made.items()}))
            print(f"operator: {operator.resident_mib:.0f} MiB, {operator.processor_seconds:.1f} s of a processor")
        finally:
            operator.stop()


if __name__ == "__main__":
    main()
