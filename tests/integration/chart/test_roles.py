"""What people may do with FineTuneJobs: the API server's word, once its own roles have taken up the chart's."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import of_kind, render
from kubernetes import client, config

from finetune_api import names

READ = {"get", "list", "watch"}
WRITE = {"create", "update", "patch", "delete", "deletecollection"}
MAY = {"view": READ, "edit": READ | WRITE, "admin": READ | WRITE}


@pytest.fixture(scope="module")
def review(helm: str, kubectl: Callable[..., str], control_plane: Path) -> Iterator[Callable[..., bool]]:
    """Ask the API server whether a user with one of its roles may do something in `default`."""
    roles = [
        one for one in of_kind(render(helm), "ClusterRole") if one["metadata"]["name"].endswith(("-view", "-edit"))
    ]
    bindings = [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"people-{role}", "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"a-{role}"}],
        }
        for role in MAY
    ]
    made = yaml.safe_dump_all([*roles, *bindings])
    kubectl("apply", "-f", "-", stdin=made)
    with config.new_client_from_config(str(control_plane)) as api:

        def ask(role: str, verb: str, part: str = "", group: str = names.GROUP, kind: str = names.PLURAL) -> bool:
            asked = {"verb": verb, "group": group, "resource": kind, "subresource": part, "namespace": "default"}
            body = {"spec": {"user": f"a-{role}", "resourceAttributes": asked}}
            return bool(client.AuthorizationV1Api(api).create_subject_access_review(body).status.allowed)

        yield ask
    kubectl("delete", "-f", "-", stdin=made)


@pytest.mark.parametrize("role", MAY)
def test_the_clusters_own_roles_cover_finetunejobs(review: Any, role: str) -> None:
    deadline = time.monotonic() + 30
    while (found := {verb for verb in READ | WRITE if review(role, verb)}) != MAY[role] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found == MAY[role]
    assert review(role, "get", "status")
    assert not any(review(role, verb, "status") for verb in ("update", "patch"))


def test_a_reader_of_jobs_reads_no_secrets(review: Any) -> None:
    assert not review("view", "get", group="", kind="secrets")
