"""What a user does with a deployed operator: put data, apply a job, wait, look at pods, read results."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

GROUP, VERSION, PLURAL = "finetune.dev", "v1alpha1", "finetunejobs"
BUCKET = "finetune-e2e"


def kubectl(*arguments: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """kubectl as a user runs it; its error output is part of a failed assertion."""
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done


def wait_for(what: str, look: Callable[[], Any], *, seconds: float = 480, state: Callable[[], Any] = lambda: "") -> Any:
    """The first truthy result of `look`; a failure tells what was waited for and the state it was in."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"waited {seconds:.0f} s for {what}; state: {state()}")


@dataclass
class Bench:
    """One namespace with storage keys, and what a user does in it."""

    namespace: str
    s3: Any

    def uri(self, key: str) -> str:
        return f"s3://{BUCKET}/{self.namespace}/{key}"

    def key(self, uri: str) -> str:
        return uri.removeprefix(f"s3://{BUCKET}/")

    def put(self, key: str, body: bytes | str) -> str:
        data = body.encode() if isinstance(body, str) else body
        self.s3.put_object(Bucket=BUCKET, Key=f"{self.namespace}/{key}", Body=data)
        return self.uri(key)

    def read(self, uri: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=BUCKET, Key=self.key(uri))["Body"].read())

    def keys(self, uri: str) -> list[str]:
        prefix = self.key(uri).rstrip("/") + "/"
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", [])]

    def download(self, uri: str, directory: Path) -> Path:
        for key in self.keys(uri):
            path = directory / key
            path.parent.mkdir(parents=True, exist_ok=True)
            self.s3.download_file(BUCKET, f"{self.key(uri).rstrip('/')}/{key}", str(path))
        return directory

    def manifest(self, name: str, **spec: Any) -> dict[str, Any]:
        base = {
            "objective": "Chat",
            "storage": {
                "endpoint": os.environ.get("FINETUNE_S3_ENDPOINT_IN_CLUSTER", os.environ["AWS_ENDPOINT_URL"]),
                "credentialsSecretRef": {"name": "s3"},
            },
            "model": {"uri": f"s3://{BUCKET}/tiny-model"},
            "dataset": {"train": {"uri": f"s3://{BUCKET}/colours.jsonl"}, "validationSplitPercent": 10},
            "hyperparameters": {
                "maxSteps": 20,
                "perDeviceTrainBatchSize": 4,
                "gradientAccumulationSteps": 1,
                "maxLength": 128,
            },
            "evaluation": {"steps": 10},
            "output": {"uri": self.uri(f"out/{name}")},
            "resources": {"gpusPerNode": 1, "requests": {"cpu": "500m", "memory": "1Gi"}},
        }
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "FineTuneJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": base | spec,
        }

    def apply(self, name: str, **spec: Any) -> "Job":
        kubectl("apply", "-f", "-", stdin=yaml.safe_dump(self.manifest(name, **spec)))
        return Job(self, name)


@dataclass
class Job:
    """A FineTuneJob that was applied."""

    bench: Bench
    name: str

    @property
    def namespace(self) -> str:
        return self.bench.namespace

    def get(self) -> dict[str, Any]:
        return dict(
            client.CustomObjectsApi().get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, self.name)
        )

    def status(self) -> dict[str, Any]:
        return dict(self.get().get("status", {}))

    def condition(self, kind: str) -> dict[str, Any]:
        return next((one for one in self.status().get("conditions", []) if one["type"] == kind), {})

    def wait(self, kind: str, *, seconds: float = 900) -> dict[str, Any]:
        """Wait until the condition is True and return the status; a job that ended otherwise fails at once."""

        def look() -> dict[str, Any] | None:
            status = self.status()
            true = {one["type"] for one in status.get("conditions", []) if one["status"] == "True"}
            ended = true & {"Complete", "Failed"}
            assert not ended or kind in true, (
                f"{self.name} ended otherwise: {json.dumps(status, indent=1)}\n{self.logs()}"
            )
            return status if kind in true else None

        found: dict[str, Any] = wait_for(f"{kind} of {self.name}", look, seconds=seconds, state=self.status)
        return found

    def delete(self) -> None:
        kubectl("delete", "finetunejob", self.name, "-n", self.namespace, "--wait")

    def jobs(self, component: str = "trainer") -> list[Any]:
        found = client.BatchV1Api().list_namespaced_job(self.namespace, label_selector=self._selector(component))
        return list(found.items)

    def pods(self, component: str = "trainer") -> list[Any]:
        found = client.CoreV1Api().list_namespaced_pod(self.namespace, label_selector=self._selector(component))
        return list(found.items)

    def running_pod(self) -> Any:
        """The trainer pod that trains, once it has made a step."""

        def look() -> Any:
            pods = [pod for pod in self.pods() if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp]
            return pods[0] if pods and self.status().get("progress", {}).get("step", 0) > 0 else None

        return wait_for(f"a training pod of {self.name}", look, state=self.status)

    def saved_pod(self) -> Any:
        """The trainer pod that trains, once storage holds a checkpoint of it, which the status tells later."""
        uri = self.bench.uri(f"out/{self.name}/checkpoints")

        def look() -> Any:
            is_saved = any(key.endswith("manifest.json") for key in self.bench.keys(uri))
            return next((pod for pod in self.pods() if is_saved and pod.status.phase == "Running"), None)

        return wait_for(f"a checkpoint of {self.name}", look, state=self.status)

    def logs(self) -> str:
        return kubectl(
            "logs", "-n", self.namespace, "-l", f"finetune.dev/job-name={self.name}", "--tail=40", check=False
        ).stdout

    def _selector(self, component: str) -> str:
        return f"finetune.dev/job-name={self.name},app.kubernetes.io/component={component}"


def process_of(pod: Any) -> int | None:
    """PID 1 of the pod's only container, as this machine counts: from within, nobody can SIGKILL a PID 1."""
    container = (pod.status.container_statuses or [None])[0]
    if container is None or not container.container_id or not (container.state and container.state.running):
        return None
    wanted = container.container_id.rpartition("/")[2]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "cgroup").read_text():
                status = (folder / "status").read_text()
                if status.split("NSpid:", 1)[1].splitlines()[0].split()[-1] == "1":
                    return int(folder.name)
        except OSError:
            continue  # it ended meanwhile
    return None


def secret(namespace: str, name: str, access_key: str, secret_key: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key},
    }


def first_node() -> str:
    """The hostname label of the cluster's first node, which is this machine."""
    return str(client.CoreV1Api().list_node().items[0].metadata.labels["kubernetes.io/hostname"])


def local_volume(name: str, storage_class: str, node: str, path: Path, size: str) -> dict[str, Any]:
    """A PersistentVolume that is a folder of a node."""
    at_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [at_node]}]}},
        },
    }
