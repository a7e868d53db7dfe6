"""Ask and tell the API server through the kubectl of this cluster."""

from __future__ import annotations

import json
import subprocess
import time
from datetime import datetime
from typing import Any

from binaries import binary
from daemons import started_at, wait_until
from layout import FAKE_GPUS, NODE_NAME, ClusterError, Layout


def is_ready(layout: Layout) -> bool:
    """Whether the API server says it is ready."""
    return _run(layout, "get", "--raw=/readyz", "--request-timeout=2s").returncode == 0


def ask(layout: Layout, *arguments: str) -> Any:
    """The JSON answer of a `kubectl get`, or None when there is none."""
    result = _run(layout, *arguments, "--output=json", "--request-timeout=10s")
    return json.loads(result.stdout) if result.returncode == 0 else None


def text_of_all(layout: Layout, kinds: str) -> str | None:
    """All objects of these kinds as JSON text, to look for a word in; None when there is no answer."""
    found = ask(layout, "get", kinds, "--all-namespaces")
    return None if found is None else json.dumps(found)


def tell(layout: Layout, *arguments: str, stdin: str | None = None) -> None:
    """A kubectl command that has to succeed."""
    result = _run(layout, *arguments, stdin=stdin)
    if result.returncode:
        raise ClusterError(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")


def would_accept(layout: Layout, manifest: str) -> bool:
    """Whether the API server, with its webhooks, would create that object."""
    arguments = ("create", "--dry-run=server", "--request-timeout=10s", "--filename=-")
    return _run(layout, *arguments, stdin=manifest).returncode == 0


def node_is_ready(layout: Layout) -> bool:
    """Whether the node is Ready in the words of the kubelet that runs now, not of one before it."""
    node = ask(layout, "get", "node", NODE_NAME)
    ready = _condition(node, "Ready") if node else None
    if ready is None or ready["status"] != "True":
        return False
    return datetime.fromisoformat(ready["lastHeartbeatTime"]).timestamp() >= int(started_at(layout, "kubelet"))


def unavailable_api_services(layout: Layout) -> list[str]:
    """Each of them keeps every namespace Terminating."""
    services = ask(layout, "get", "apiservices")
    if services is None:
        return ["(no answer)"]
    return [item["metadata"]["name"] for item in services["items"] if not _is_available(item)]


def add_fake_gpus(layout: Layout) -> None:
    """Give the node GPUs that the scheduler counts; the kubelet zeroes them only when it starts."""
    gpus = {"nvidia.com/gpu": str(FAKE_GPUS)}
    patch = json.dumps({"status": {"capacity": gpus, "allocatable": gpus}})
    tell(layout, "patch", "node", NODE_NAME, "--subresource=status", "--type=merge", f"--patch={patch}")


def has_fake_gpus(layout: Layout) -> bool:
    """Whether the node offers the fake GPUs."""
    node = ask(layout, "get", "node", NODE_NAME) or {}
    return bool(node.get("status", {}).get("allocatable", {}).get("nvidia.com/gpu") == str(FAKE_GPUS))


def prove_a_namespace_ends(layout: Layout) -> None:
    """Make a namespace and delete it: it hangs as soon as one API group does not answer."""
    name = f"cluster-check-{int(time.time())}"
    tell(layout, "create", "namespace", name)
    wait_until(
        lambda: ask(layout, "get", "serviceaccount", "default", f"--namespace={name}") is not None,
        30, "the default service account of a new namespace", layout, "kube-controller-manager",
    )  # fmt: skip
    tell(layout, "delete", "namespace", name, "--wait=true", "--timeout=60s")


def _is_available(service: Any) -> bool:
    condition = _condition(service, "Available")
    return condition is not None and condition["status"] == "True"


def _condition(item: Any, kind: str) -> Any:
    return next((found for found in item.get("status", {}).get("conditions", []) if found["type"] == kind), None)


def _run(layout: Layout, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    argv = [binary("kubectl"), f"--kubeconfig={layout.kubeconfig}", *arguments]
    return subprocess.run(argv, input=stdin, check=False, capture_output=True, text=True)
