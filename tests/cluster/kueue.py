"""Kueue from its own chart, with a manager built here: the queue that training Jobs wait in."""

from __future__ import annotations

import json
from pathlib import Path

import binaries
import containers
import kubectl
from daemons import run_logged, wait_until
from layout import Layout
from oci import write_archive

NAMESPACE = "kueue-system"
RELEASE = "kueue"
REPOSITORY = "docker.io/library/finetune-kueue"
CONFIGURATION = """\
apiVersion: config.kueue.x-k8s.io/v1beta2
kind: Configuration
health:
  healthProbeBindAddress: :8081
metrics:
  bindAddress: :8443
webhook:
  port: 9443
leaderElection:
  leaderElect: false
manageJobsWithoutQueueName: {manage_all}
integrations:
  frameworks:
  - batch/job
"""


def install(layout: Layout, *, manage_all: bool) -> None:
    """Install or reconfigure Kueue; ends when its webhooks and its APIServices answer."""
    binaries.build(("kueue",))
    source = binaries.module_folder("kueue")
    tag = source.name.rpartition("@")[2]
    if f"{REPOSITORY}:{tag}" not in containers.images(layout):
        _import_manager(layout, f"{REPOSITORY}:{tag}")
    values = layout.etc / "kueue-values.json"
    values.write_text(json.dumps(_values(tag, manage_all=manage_all)))
    release = ("upgrade", "--install", RELEASE, str(source / "charts" / "kueue"))
    settings = ("--create-namespace", "--values", str(values), "--wait", "--timeout", "180s")
    _helm(layout, *release, *settings)
    wait_until(
        lambda: not kubectl.unavailable_api_services(layout), 60, "every APIService to be Available", layout,
        "kube-apiserver",
    )  # fmt: skip
    wait_until(lambda: _managers(layout) == 1, 60, "the manager of before to end", layout, "kube-apiserver")
    wait_until(lambda: _webhooks_answer(layout), 60, "an answer of Kueue's webhooks", layout, "kube-apiserver")


def uninstall(layout: Layout) -> None:
    """Uninstall Kueue after its queues, while its manager still lets go of what it guards."""
    kinds = ("workloads", "localqueues", "clusterqueues", "cohorts", "resourceflavors", "topologies")
    for kind in kinds:
        kubectl.tell(
            layout, "delete", f"{kind}.kueue.x-k8s.io", "--all", "--all-namespaces", "--ignore-not-found",
            "--timeout=60s",
        )  # fmt: skip
    _helm(layout, "uninstall", RELEASE, "--ignore-not-found", "--wait", "--timeout", "120s")


def _values(tag: str, *, manage_all: bool) -> dict[str, object]:
    return {
        "controllerManager": {
            "manager": {
                "image": {"repository": REPOSITORY, "tag": tag, "pullPolicy": "Never"},
                "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
                "podSecurityContext": {"runAsNonRoot": True, "runAsUser": 65532},
            },
            "readinessProbe": {"initialDelaySeconds": 1},
        },
        "managerConfig": {
            "controllerManagerConfigYaml": CONFIGURATION.format(manage_all=str(manage_all).lower()),
        },
    }


def _import_manager(layout: Layout, reference: str) -> None:
    archive = layout.root / "kueue.tar"
    write_archive(archive, reference, {"manager": Path(binaries.binary("kueue"))}, entrypoint=["/manager"])
    containers.import_archive(layout, archive)
    archive.unlink()


def _managers(layout: Layout) -> int:
    """Pods of the manager; an old one would answer with its old configuration until it has ended."""
    found = kubectl.ask(layout, "get", "pods", "--namespace", NAMESPACE)
    return len(found["items"]) if found else 0


def _webhooks_answer(layout: Layout) -> bool:
    """A dry run of a flavour passes through the webhook, or fails while nothing listens there."""
    flavour = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "probe"}}
    return kubectl.would_accept(layout, json.dumps(flavour))


def _helm(layout: Layout, *arguments: str) -> None:
    command = [binaries.binary("helm"), *arguments, "--namespace", NAMESPACE]
    run_logged(layout, "helm-kueue", command, env={"KUBECONFIG": str(layout.kubeconfig)})
