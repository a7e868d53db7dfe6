"""The full cluster, with its real kubelet, and vLLM in pods; KServe's controller as a process next to it.

No registry has an image with vLLM: the pods mount the packages of the environment of `make servers` from the node.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from answering_jobs import ANSWERS, HYPERPARAMETERS, Result, start_job, wait_for_result
from deployed_chart import Chart
from kserve_world import KServe, Kubectl, Object
from kubernetes import client, config
from other_tests import load_tests
from tiny_model import make_tiny_model
from user import BUCKET, Bench, secret
from vllm_server import ENVIRONMENT, FLAGS, PROGRAMS

HERE = Path(__file__).parent
PACKAGES = PROGRAMS.parent / "lib" / "python3.11" / "site-packages"
"""Of the same Python as the cluster's base image."""
TEMPLATE = "kserve-config-llm-template"
HEADS = 2
"""vLLM serves no narrower heads on a CPU."""

_controllers = load_tests("servers/controllers/conftest.py")
install = _controllers.install
kubectl = _controllers.kubectl
program = _controllers.program
running = _controllers.running
source = _controllers.source
tool_path = _controllers.tool_path


@pytest.fixture(scope="session")
def control_plane() -> Path:
    """Path of an administrator's kubeconfig of the full cluster."""
    assert os.environ.get("FINETUNE_CLUSTER_DIR"), "no full cluster in the environment: make serving-pods"
    assert PACKAGES.is_dir(), f"{PACKAGES} is missing: the base image has Python 3.11"
    config.load_kube_config()
    return Path(os.environ["KUBECONFIG"])


@pytest.fixture(scope="session")
def s3() -> Any:
    """The cluster's storage."""
    storage = boto3.client("s3")
    with contextlib.suppress(storage.exceptions.BucketAlreadyExists, storage.exceptions.BucketAlreadyOwnedByYou):
        storage.create_bucket(Bucket=BUCKET)
    return storage


@pytest.fixture(scope="session")
def chart(control_plane: Path) -> Iterator[Chart]:
    """The deployed chart, with releases to KServe; it is put back as it was."""
    found = Chart()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is gone when an interrupted run puts it back
        found.install(Path(folder), release={"enabled": True, "kserve": True})
        yield found
        found.put_back(Path(folder))


@pytest.fixture(scope="session")
def image(source: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of KServe's pods, in the node."""
    folder = shutil.copytree(HERE / "image", tmp_path_factory.mktemp("image"), dirs_exist_ok=True)
    shutil.copy(source("llmisvc") / "python" / "storage-initializer" / "scripts" / "initializer-entrypoint", folder)
    command = [*_controllers.CLUSTER_PY, "build-image", "finetune-kserve", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder with vLLM on the node."""
    return PACKAGES.resolve()


@pytest.fixture(scope="session")
def kserve(
    *,
    source: Any,
    install: Any,
    program: Any,
    running: Any,
    image: str,
    kubectl: Kubectl,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[KServe]:
    """KServe with its controller, and with this image as storage initializer."""
    found = KServe(source("llmisvc"), kubectl)
    found.remove()  # what an interrupted run has left
    try:
        for path in found.definitions():
            install(path)
        found.configure()
        found.add_presets()
        found.set_storage_initializer(image)
        with found.controller(program("llmisvc"), running, tmp_path_factory.mktemp("kserve")):
            yield found
    finally:
        found.remove()


@pytest.fixture(scope="session")
def world(kserve: KServe, chart: Chart, kubectl: Kubectl) -> Iterator[Any]:
    """A namespace whose default service account reads the storage, as a report describes it."""
    namespace = f"kserve-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", namespace)
    keys = secret(namespace, "s3", os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    endpoint = os.environ["FINETUNE_S3_ENDPOINT_IN_CLUSTER"]
    keys["metadata"]["annotations"] = {"serving.kserve.io/s3-endpoint": endpoint}
    kserve.apply(keys)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}
    kserve.apply(account | {"secrets": [{"name": "s3"}]}, "--force-conflicts")
    yield _controllers.World(client.ApiClient(), namespace)
    kubectl("delete", "finetunerelease,finetunejob", "--all", "-n", namespace, "--timeout=120s")
    kubectl("delete", "namespace", namespace, "--timeout=180s")


@pytest.fixture(scope="session")
def bench(world: Any, s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same namespace for a user of the operator, with a base model that vLLM serves."""
    found = Bench(world.namespace, s3)
    for path in make_tiny_model(tmp_path_factory.mktemp("model"), heads=HEADS).iterdir():
        found.put(f"model/{path.name}", path.read_bytes())
    return found


@pytest.fixture(scope="session")
def _template(kserve: KServe, world: Any, image: str, packages: Path, kubectl: Kubectl) -> Iterator[None]:
    """KServe's preset for a server in one pod, in a namespace of its own: other image, flags for a CPU, packages of the
    node, and requests that a small node fulfils."""
    preset: Object = yaml.safe_load(kserve.preset(f"config-{TEMPLATE.partition('-config-')[2]}").read_text())
    pod = preset["spec"]["template"]
    (server,) = pod["containers"]
    mount = {"name": "packages", "mountPath": "/opt/servers", "readOnly": True}
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "VLLM_ADDITIONAL_ARGS": " ".join(FLAGS)}
    server["image"] = image
    server["env"] += [{"name": name, "value": value} for name, value in environment.items()]
    server["volumeMounts"].append(mount)
    server["resources"] = {"requests": {"cpu": "500m", "memory": "2Gi"}}
    pod["initContainers"] = [{"name": "storage-initializer", "volumeMounts": [mount]}]
    pod["volumes"].append({"name": "packages", "hostPath": {"path": str(packages), "type": "Directory"}})
    kserve.apply(preset, "-n", world.namespace)
    yield
    kubectl("delete", "llminferenceserviceconfig", TEMPLATE, "-n", world.namespace, "--timeout=60s")


@pytest.fixture(scope="session")
def results(bench: Bench) -> list[Result]:
    """Two jobs with other answers to the same questions, and one whose rank is above the services' `maxRank`."""
    short = HYPERPARAMETERS | {"maxSteps": 2}
    wide = start_job(bench, "wide", tuning={"method": "LoRA", "lora": {"rank": 24}}, hyperparameters=short)
    jobs = [*(start_job(bench, name) for name in ANSWERS), wide]
    return [wait_for_result(bench, job) for job in jobs]
