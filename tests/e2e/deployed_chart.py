"""The deployed chart: installed with other values, and put back."""

import subprocess
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client
from user import wait_for

CHART = Path(__file__).parents[2] / "helm" / "finetune-operator"
NAMESPACE, RELEASE = "finetune-system", "finetune-operator"


class Chart:
    """The deployed release, and the values that it was deployed with."""

    def __init__(self) -> None:
        self.values = yaml.safe_load(helm("get", "values", RELEASE, "--output", "yaml")) or {}

    def install(self, folder: Path, chart: Path = CHART, **values: Any) -> None:
        """Install or upgrade it, and wait until only a new operator is ready."""
        before = {pod.metadata.uid for pod in operators()}
        self.put_back(folder, chart, **values)
        wait_for("another operator, alone", lambda: self._alone(before), state=lambda: list(map(name_of, operators())))

    def put_back(self, folder: Path, chart: Path = CHART, **values: Any) -> None:
        """Install or upgrade it, and wait until it is ready; without values as it was deployed."""
        file = folder / "values.yaml"
        file.write_text(yaml.safe_dump(self.values | values), encoding="utf-8")
        helm("upgrade", "--install", RELEASE, str(chart), "--values", str(file), "--wait", "--timeout", "180s")

    def _alone(self, before: set[str]) -> list[Any]:
        pods = operators()
        ready = [pod for pod in pods if all(one.ready for one in pod.status.container_statuses or [])]
        return pods if len(pods) == len(ready) == 1 and pods[0].metadata.uid not in before else []


def helm(*arguments: str) -> str:
    command = ["helm", *arguments, "--namespace", NAMESPACE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def operators() -> list[Any]:
    selector = "app.kubernetes.io/component=operator"
    return list(client.CoreV1Api().list_namespaced_pod(NAMESPACE, label_selector=selector).items)


def name_of(pod: Any) -> str:
    return str(pod.metadata.name)
