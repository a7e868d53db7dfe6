"""A hub inside the cluster: a pod that serves model folders under the names that manifests use."""

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from user import kubectl

ROOT = Path(__file__).resolve().parents[2]
SERVER = [ROOT / "tests" / "fixtures" / name for name in ("hub.py", "hub_uploads.py", "http_servers.py")]
PORT = 8000
LIMIT = 900_000
"""A ConfigMap holds 1 MiB."""


def start_hub(namespace: str, repositories: Mapping[str, Path]) -> str:
    """Serve each folder as that repository (`models/owner/name` or `datasets/owner/name`); return the endpoint. A
    folder that is served under several names is held once."""
    folders = list(dict.fromkeys(repositories.values()))
    objects = [_config(namespace, "hub", SERVER)]
    objects += [_config(namespace, _name(number), sorted(one.iterdir())) for number, one in enumerate(folders)]
    items: dict[str, list[dict[str, str]]] = {}
    for repository, folder in repositories.items():
        of_folder = items.setdefault(_name(folders.index(folder)), [])
        of_folder += [{"key": path.name, "path": f"{repository}/{path.name}"} for path in sorted(folder.iterdir())]
    objects += [_service(namespace), _pod(namespace, items)]
    kubectl("create", "-f", "-", stdin=yaml.safe_dump_all(objects))  # apply would keep a copy in an annotation
    kubectl("wait", "--for=condition=Ready", "pod/hub", "-n", namespace, "--timeout=300s")
    return f"http://hub.{namespace}.svc:{PORT}"


def _name(folder: int) -> str:
    return f"hub-{folder}"


def _config(namespace: str, name: str, paths: Sequence[Path]) -> dict[str, Any]:
    files = {path.name: base64.b64encode(path.read_bytes()).decode() for path in paths}
    assert sum(map(len, files.values())) < LIMIT, "the folder is too large for a ConfigMap"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "binaryData": files,
    }


def _service(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "hub", "namespace": namespace},
        "spec": {"selector": {"app": "hub"}, "ports": [{"port": PORT}]},
    }


def _pod(namespace: str, items: Mapping[str, list[dict[str, str]]]) -> dict[str, Any]:
    models = [{"configMap": {"name": name, "items": of_folder}} for name, of_folder in items.items()]
    hardened = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "hub", "namespace": namespace, "labels": {"app": "hub"}},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "hub",
                    "image": os.environ["FINETUNE_TRAINER_IMAGE"],
                    "command": ["/opt/venv/bin/python", "/hub/hub.py", "--root", "/repositories"],
                    "args": ["--host", "$(POD_IP)", "--port", str(PORT)],
                    "env": [
                        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "PYTHONPATH", "value": "/hub"},  # the image does not import from a script's folder
                    ],
                    "ports": [{"containerPort": PORT}],
                    "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
                    "securityContext": hardened,
                    "volumeMounts": [
                        {"name": "hub", "mountPath": "/hub"},
                        {"name": "repositories", "mountPath": "/repositories"},
                    ],
                }
            ],
            "volumes": [
                {
                    "name": "hub",
                    "configMap": {"name": "hub", "items": [{"key": one.name, "path": one.name} for one in SERVER]},
                },
                {"name": "repositories", "projected": {"sources": models}},
            ],
        },
    }
