"""The FlowSchema of the chart, by the answers of a real API server."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3
import yaml
from chart import of_kind, render
from kubernetes import client, config

HEADER = "X-Kubernetes-PF-FlowSchema-UID"


def test_by_default_there_is_none(helm: str) -> None:
    assert of_kind(render(helm), "FlowSchema") == []


@pytest.mark.parametrize("account", ["tuner", "another"])
def test_it_takes_the_requests_of_the_operators_account_and_no_others(
    helm: str, kubectl: Callable[..., str], control_plane: Path, account: str
) -> None:
    (made,) = of_kind(render(helm, "--set", "flowSchema.enabled=true,serviceAccount.name=tuner"), "FlowSchema")
    (subject,) = made["spec"]["rules"][0]["subjects"]
    user = f"system:serviceaccount:{subject['serviceAccount']['namespace']}:{account}"
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(made))
    name = made["metadata"]["name"]
    uid = kubectl("get", "flowschema", name, "-o", "jsonpath={.metadata.uid}")
    with config.new_client_from_config(str(control_plane)) as api:
        pool, url = api.rest_client.pool_manager, f"{api.configuration.host}/api/v1/namespaces/default/pods"
        deadline = time.monotonic() + 30  # until the API server uses it
        while (found := _flow_of(pool, url, user)) != uid and account == "tuner" and time.monotonic() < deadline:
            time.sleep(0.2)
        dangling = client.FlowcontrolApiserverV1Api(api).read_flow_schema_status(name).status.conditions
    assert (found == uid) == (account == "tuner")
    assert {one.type: one.status for one in dangling or []}.get("Dangling", "False") == "False"
    kubectl("delete", "flowschema", name)


def _flow_of(pool: urllib3.PoolManager, url: str, user: str) -> str:
    return pool.request("GET", url, headers={"Impersonate-User": user}).headers.get(HEADER, "")
