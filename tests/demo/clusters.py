"""Where the demo and the e2e tests run: kind, the cluster of tests/cluster, or the one of the current kubeconfig.

Each gives the same `Environment`; nothing after this file knows which it was.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import environment
from commands import ROOT, run, say
from environment import Environment

import kind

CLUSTER_PY = str(ROOT / "tests" / "cluster" / "cluster.py")
ABOUT = {
    "native": "the cluster of tests/cluster, on which the tests run",
    "kind": "with Docker; the demo ran on it, and no test",
    "current": "the one of the current kubeconfig",
}

NEEDED = {"native": (), "kind": ("docker", "kind", "kubectl", "helm"), "current": ("kubectl", "helm")}
"""Programs of the user; the cluster of tests/cluster builds its own."""


def choose(asked: str) -> str:
    """Return the cluster to use; `auto` is the tested one, and never another because of what is installed."""
    if asked != "auto":
        return asked
    if sys.platform != "linux" or os.geteuid() != 0:
        sys.exit(
            "CLUSTER=auto is the tested cluster of tests/cluster, which needs Linux and root; here use CLUSTER=kind "
            f"({ABOUT['kind']}) or CLUSTER=current ({ABOUT['current']})"
        )
    return "native"


def start(cluster: str) -> Environment:
    """Start the cluster with both images and an S3 server; return how to reach them."""
    if missing := [name for name in NEEDED[cluster] if not shutil.which(name)]:
        sys.exit(f"CLUSTER={cluster} needs these programs in PATH: {', '.join(missing)}")
    return {"native": start_native, "kind": kind.start, "current": start_current}[cluster]()


def stop(asked: str) -> None:
    """Remove what `start` started, even if it did not finish; `auto`: wherever that was."""
    ends = {"kind": kind.stop, "native": lambda: native("down"), "current": leave_current}
    failures = []
    for cluster in ends if asked == "auto" else [asked]:
        try:
            ends[cluster]()
            environment.forget(cluster)
        except SystemExit as failure:  # the others are to end all the same
            failures.append(str(failure))
    if failures:
        sys.exit("; ".join(failures))


def leave_current() -> None:
    """A cluster that was there before is left as it is."""
    if environment.is_deployed("current"):
        say("the cluster of the current kubeconfig is not ours: `helm uninstall` removes the operator")


def native(*arguments: str) -> None:
    """One command of tests/cluster."""
    run(sys.executable, CLUSTER_PY, *arguments)


def start_native() -> Environment:
    """The cluster of tests/cluster on this machine."""
    for command in (("build",), ("up",), ("images",), ("s3", "up")):
        native(*command)
    values = native_environment()
    return Environment(
        cluster="native",
        kubeconfig=values["KUBECONFIG"],
        s3_endpoint=values["AWS_ENDPOINT_URL"],
        s3_endpoint_in_cluster=values["AWS_ENDPOINT_URL"],
        access_key=values["AWS_ACCESS_KEY_ID"],
        secret_key=values["AWS_SECRET_ACCESS_KEY"],
        operator_image=values["FINETUNE_OPERATOR_IMAGE"],
        trainer_image=values["FINETUNE_TRAINER_IMAGE"],
        preflight_image=values.get("FINETUNE_PREFLIGHT_IMAGE", ""),
        programs=values["PATH"].removesuffix(os.environ["PATH"]).rstrip(":"),
        directory=values["FINETUNE_CLUSTER_DIR"],
    )


def native_environment() -> dict[str, str]:
    """The variables that `cluster.py env` exports, read by the shell that they are written for."""
    script = 'eval "$("$0" "$1" env)"; env -0'
    arguments = [sys.executable, CLUSTER_PY]
    done = subprocess.run(["bash", "-euc", script, *arguments], capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)


def start_current() -> Environment:
    """The cluster of the current kubeconfig; images and storage are the caller's."""
    needed = (
        "FINETUNE_OPERATOR_IMAGE",
        "FINETUNE_TRAINER_IMAGE",
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    )
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        sys.exit(f"CLUSTER=current needs these environment variables: {', '.join(missing)}")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    return Environment(
        cluster="current",
        kubeconfig=os.environ.get("KUBECONFIG", str(Path.home() / ".kube" / "config")),
        s3_endpoint=endpoint,
        s3_endpoint_in_cluster=os.environ.get("FINETUNE_S3_ENDPOINT_IN_CLUSTER", endpoint),
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        operator_image=os.environ["FINETUNE_OPERATOR_IMAGE"],
        trainer_image=os.environ["FINETUNE_TRAINER_IMAGE"],
        preflight_image=os.environ.get("FINETUNE_PREFLIGHT_IMAGE", ""),
    )
