"""A deployed cluster in the environment, storage with the tiny model, and a namespace for each module of tests."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
import yaml
from deployed_chart import Chart
from kubernetes import client, config
from rows import colour_rows, jsonl
from tiny_model import make_tiny_model
from user import BUCKET, Bench, kubectl, secret, wait_for

NEEDED = ("KUBECONFIG", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing and items:
        pytest.exit(f"no deployed cluster in the environment ({', '.join(missing)}): run `make e2e`", returncode=2)
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(2700))  # longer than the waits in it, which say what they waited for


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Storage with the tiny model and the colours in it."""
    storage = boto3.client("s3")
    if BUCKET not in [bucket["Name"] for bucket in storage.list_buckets()["Buckets"]]:
        with contextlib.suppress(storage.exceptions.BucketAlreadyExists, storage.exceptions.BucketAlreadyOwnedByYou):
            storage.create_bucket(Bucket=BUCKET)  # another process of the tests may have been faster
    directory = tmp_path_factory.mktemp("tiny-model")
    make_tiny_model(directory)
    for path in sorted(directory.iterdir()):
        storage.upload_file(str(path), BUCKET, f"tiny-model/{path.name}")
    storage.put_object(Bucket=BUCKET, Key="colours.jsonl", Body=jsonl(colour_rows(300)).encode())
    return storage


@pytest.fixture(scope="session", autouse=True)
def _kubeconfig() -> None:
    config.load_kube_config()


@pytest.fixture(scope="module")
def bench(s3: Any, _kubeconfig: None) -> Iterator[Bench]:
    """A namespace under the restricted Pod Security Standard, removed with everything in it."""
    namespace = f"ftj-e2e-{uuid.uuid4().hex[:6]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}},
        secret(namespace, "s3", os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]),
        secret(namespace, "wrong-keys", os.environ["AWS_ACCESS_KEY_ID"], "not-the-secret"),
    ]
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    yield Bench(namespace, s3)
    # With pods in it, Kubernetes looks at a namespace again only after half of their grace period: a minute.
    kubectl("delete", "finetunejobs", "--all", "--namespace", namespace)
    kubectl("delete", "pods", "--all", "--namespace", namespace, "--wait=false")
    wait_for("the end of the pods", lambda: not client.CoreV1Api().list_namespaced_pod(namespace).items)
    kubectl("delete", "namespace", namespace, "--wait", "--timeout=600s")


@pytest.fixture(scope="module")
def chart(_kubeconfig: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chart]:
    """The deployed chart, which is put back as it was."""
    found = Chart()
    yield found
    found.put_back(tmp_path_factory.mktemp("chart"))
