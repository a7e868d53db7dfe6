"""Where the demo and the e2e tests run: kind, the cluster of tests/cluster, or the one of the current kubeconfig.

Each gives the same `Environment`; nothing after this file knows which it was.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STATE = Path(os.environ.get("FINETUNE_STATE_DIR", Path.home() / ".cache" / "finetune-operator"))
ENVIRONMENT_FILE = STATE / "environment.json"
KIND_NAME = "finetune"
KIND_KEYS = ("finetune-demo", "finetune-demo-secret")


@dataclass(frozen=True)
class Environment:
    """What a client needs: a kubeconfig, S3 from outside and from inside, the images, and where kubectl is."""

    cluster: str
    kubeconfig: str
    s3_endpoint: str
    s3_endpoint_in_cluster: str
    access_key: str
    secret_key: str
    operator_image: str
    trainer_image: str
    programs: str = ""

    def variables(self) -> dict[str, str]:
        """The settings as environment variables, as `make env` exports them."""
        return {
            "KUBECONFIG": self.kubeconfig,
            "PATH": f"{self.programs}:{os.environ['PATH']}" if self.programs else os.environ["PATH"],
            "AWS_ENDPOINT_URL": self.s3_endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "FINETUNE_S3_ENDPOINT_IN_CLUSTER": self.s3_endpoint_in_cluster,
            "FINETUNE_OPERATOR_IMAGE": self.operator_image,
            "FINETUNE_TRAINER_IMAGE": self.trainer_image,
        }

    def save(self) -> None:
        """Remembers the environment for `make env`, `make e2e` and `make down`."""
        ENVIRONMENT_FILE.parent.mkdir(parents=True, exist_ok=True)
        ENVIRONMENT_FILE.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        ENVIRONMENT_FILE.chmod(0o600)


def load_environment() -> Environment:
    """The environment of the last deploy; exits with what to run where there is none."""
    if not ENVIRONMENT_FILE.exists():
        sys.exit("no cluster has been set up yet: run `make demo` or `make deploy`")
    return Environment(**json.loads(ENVIRONMENT_FILE.read_text(encoding="utf-8")))


def choose(asked: str) -> str:
    """`kind` where Docker runs and holds the node image, else `native`; what was asked for wins."""
    if asked != "auto":
        return asked
    if shutil.which("kind") and shutil.which("docker"):
        images = subprocess.run(["docker", "images", "-q", "kindest/node"], capture_output=True, text=True, check=False)
        if images.returncode == 0 and images.stdout.strip():
            return "kind"
    return "native"


def start(cluster: str) -> Environment:
    """Brings the cluster up, with both images and an S3 server, and returns how to reach them."""
    return {"native": start_native, "kind": start_kind, "current": start_current}[cluster]()


def stop(cluster: str) -> None:
    """Removes what `start` started."""
    if cluster == "native":
        native("s3", "down")
        native("down")
    elif cluster == "kind":
        run("kind", "delete", "cluster", "--name", KIND_NAME)
    else:
        sys.stdout.write("the current cluster is not ours: `helm uninstall` removes the operator\n")
    ENVIRONMENT_FILE.unlink(missing_ok=True)


def native(*arguments: str) -> None:
    """One command of tests/cluster."""
    run(sys.executable, str(ROOT / "tests" / "cluster" / "cluster.py"), *arguments)


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
        programs=values["PATH"].removesuffix(os.environ["PATH"]).rstrip(":"),
    )


def native_environment() -> dict[str, str]:
    """The variables that `cluster.py env` exports, read by the shell that they are written for."""
    script = 'eval "$("$0" "$1" env)"; env -0'
    arguments = [sys.executable, str(ROOT / "tests" / "cluster" / "cluster.py")]
    done = subprocess.run(["bash", "-euc", script, *arguments], capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)


def start_kind() -> Environment:
    """A kind cluster with MinIO, for machines that can pull images."""
    existing = subprocess.run(["kind", "get", "clusters"], capture_output=True, text=True, check=True).stdout.split()
    kubeconfig = str(STATE / "kind.kubeconfig")
    STATE.mkdir(parents=True, exist_ok=True)
    if KIND_NAME not in existing:
        run(
            "kind",
            "create",
            "cluster",
            "--name",
            KIND_NAME,
            "--config",
            str(ROOT / "kind-config.yaml"),
            "--kubeconfig",
            kubeconfig,
        )
    else:
        run("kind", "export", "kubeconfig", "--name", KIND_NAME, "--kubeconfig", kubeconfig)
    references = {}
    for name, folder in (("finetune-operator", "operator"), ("finetune-trainer", "trainer_image")):
        reference = f"{name}:{_revision()}"
        run("docker", "build", "-t", reference, "-f", str(ROOT / folder / "Dockerfile"), str(ROOT))
        run("kind", "load", "docker-image", reference, "--name", KIND_NAME)
        references[name] = reference
    kubectl = ("kubectl", "--kubeconfig", kubeconfig)
    run(*kubectl, "apply", "-f", str(ROOT / "tests" / "kind" / "minio.yaml"))
    run(*kubectl, "-n", "finetune-storage", "rollout", "status", "deployment/minio", "--timeout=180s")
    node = f"{KIND_NAME}-control-plane"
    fake = '{"status":{"capacity":{"nvidia.com/gpu":"4"},"allocatable":{"nvidia.com/gpu":"4"}}}'
    run(*kubectl, "patch", "node", node, "--subresource=status", "--type=merge", "-p", fake)
    return Environment(
        cluster="kind",
        kubeconfig=kubeconfig,
        s3_endpoint="http://127.0.0.1:30900",
        s3_endpoint_in_cluster="http://minio.finetune-storage.svc:9000",
        access_key=KIND_KEYS[0],
        secret_key=KIND_KEYS[1],
        operator_image=references["finetune-operator"],
        trainer_image=references["finetune-trainer"],
    )


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
    )


def _revision() -> str:
    found = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "dev"


def run(*command: str) -> None:
    """Runs a command in the foreground; its failure ends this process with its status."""
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(f"`{' '.join(command[:6])} …` failed with status {done.returncode}")
