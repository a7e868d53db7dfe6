"""A kind cluster with MinIO; without a container registry by the images of tests/kind/node_image."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from commands import ROOT, run, say
from environment import STATE, Environment

NAME = "finetune-demo"
KEYS = ("finetune-demo", "finetune-demo-secret")
KUBECONFIG = STATE / "kind.kubeconfig"
CREATED = STATE / "kind.created"
"""Exists from just before the cluster is made here until it is deleted: one that somebody else made is not ours."""
NODE_IMAGE = os.environ.get("KIND_IMAGE", "")
"""The node's image; empty for kind's own."""
BASE_IMAGE = os.environ.get("KIND_BASE_IMAGE", "")
"""What the project's images are built from; empty for the one that their Dockerfiles name."""
FAKE_GPUS = '{"status":{"capacity":{"nvidia.com/gpu":"4"},"allocatable":{"nvidia.com/gpu":"4"}}}'


def start() -> Environment:
    """The cluster with both images and MinIO, and how to reach them."""
    _ensure_cluster()
    images = {
        name: _load(name, folder)
        for name, folder in (("finetune-operator", "operator"), ("finetune-trainer", "trainer_image"))
    }
    kubectl = ("kubectl", "--kubeconfig", str(KUBECONFIG))
    run(*kubectl, "apply", "-f", str(ROOT / "tests" / "kind" / "minio.yaml"))
    run(*kubectl, "-n", "finetune-storage", "rollout", "status", "deployment/minio", "--timeout=180s")
    run(
        *(*kubectl, "patch", "node", f"{NAME}-control-plane"),
        *("--subresource=status", "--type=merge", "--patch", FAKE_GPUS),
    )
    return Environment(
        cluster="kind",
        kubeconfig=str(KUBECONFIG),
        s3_endpoint="http://127.0.0.1:30900",
        s3_endpoint_in_cluster="http://minio.finetune-storage.svc:9000",
        access_key=KEYS[0],
        secret_key=KEYS[1],
        operator_image=images["finetune-operator"],
        trainer_image=images["finetune-trainer"],
    )


def stop() -> None:
    """Delete the cluster if it was made here."""
    if not CREATED.exists():
        say("no kind cluster was made here")
        return
    run("kind", "delete", "cluster", "--name", NAME, "--kubeconfig", str(KUBECONFIG))
    KUBECONFIG.unlink(missing_ok=True)
    CREATED.unlink()


def _ensure_cluster() -> None:
    existing = subprocess.run(["kind", "get", "clusters"], capture_output=True, text=True, check=True).stdout.split()
    if NAME in existing and not CREATED.exists():
        sys.exit(f"a kind cluster {NAME} exists that was not made here: `kind delete cluster --name {NAME}` first")
    if NAME in existing:
        run("kind", "export", "kubeconfig", "--name", NAME, "--kubeconfig", str(KUBECONFIG))
        return
    STATE.mkdir(parents=True, exist_ok=True)
    CREATED.touch()
    image = ("--image", NODE_IMAGE) if NODE_IMAGE else ()
    config = str(ROOT / "kind-config.yaml")
    run("kind", "create", "cluster", "--name", NAME, "--config", config, "--kubeconfig", str(KUBECONFIG), *image)


def _load(name: str, folder: str) -> str:
    """Build an image and load it into the node under a tag of its content, so that a change is a new reference."""
    # An attestation holds the time of the build, and with it the same content would get another id each time.
    os.environ["BUILDX_NO_DEFAULT_ATTESTATIONS"] = "1"
    base = ("--build-arg", f"BASE_IMAGE={BASE_IMAGE}") if BASE_IMAGE else ()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "id"
        run("docker", "build", *base, "--iidfile", str(file), "-f", str(ROOT / folder / "Dockerfile"), str(ROOT))
        image = file.read_text(encoding="utf-8").strip()
    reference = f"{name}:{image.removeprefix('sha256:')[:12]}"
    run("docker", "tag", image, reference)
    nodes = subprocess.run(("kind", "get", "nodes", "--name", NAME), capture_output=True, text=True, check=True)
    if not all(_has_image(node, reference) for node in nodes.stdout.split()):
        run("kind", "load", "docker-image", reference, "--name", NAME)
    return reference


def _has_image(node: str, reference: str) -> bool:
    """Return whether the node has the image; `kind load` asks crictl, which the image of tests/kind does not have."""
    listing = ("ctr", "--namespace", "k8s.io", "images", "list", "--quiet", f"name==docker.io/library/{reference}")
    found = subprocess.run(("docker", "exec", node, *listing), capture_output=True, text=True, check=False)
    return bool(found.stdout.strip())
