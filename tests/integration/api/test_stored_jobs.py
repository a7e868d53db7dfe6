"""A job that was stored before a change of the CRD can still be suspended, limited and deleted afterwards."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from replaced_crd import replace_crd
from waiting import wait_until

from finetune_api import names
from finetune_api.blocks import AT_CREATION
from finetune_api.schema.crd import build_crd

GROUP = "stored.example"
SPEC: dict[str, Any] = {
    "objective": "DPO",
    "model": {"uri": "s3://models/base"},
    "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
    "output": {"uri": "s3://models/out"},
    "tuning": {"lora": {"dropout": 0.1}},
    "hyperparameters": {"lrSchedulerType": "constant", "warmupSteps": 5},
    "resources": {"limits": {"nvidia.com/gpu": 1, "memory": 16}},
}


def build_other_crd(*, is_earlier: bool) -> dict[str, Any]:
    """Return our CRD in a group of its own; the earlier one has neither rules that hold at creation alone nor rules of
    two blocks, which the API server ignores while the block is unchanged."""
    crd = copy.deepcopy(build_crd())
    crd["metadata"]["name"] = f"{names.PLURAL}.{GROUP}"
    crd["spec"]["group"] = GROUP
    crd["spec"]["names"] |= {"shortNames": [], "categories": []}
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    if is_earlier:
        rules = spec["x-kubernetes-validations"]
        spec["x-kubernetes-validations"] = [rule for rule in rules if not rule["rule"].startswith(AT_CREATION)]
        for block in ("hyperparameters", "resources"):
            del spec["properties"][block]["x-kubernetes-validations"]
        assert len(spec["x-kubernetes-validations"]) < len(rules)
    return crd


@pytest.fixture
def api(control_plane: Path) -> Iterator[client.ApiClient]:
    with config.new_client_from_config(str(control_plane)) as connected:
        yield connected
        client.ApiextensionsV1Api(connected).delete_custom_resource_definition(f"{names.PLURAL}.{GROUP}")


@pytest.mark.skipif(
    os.environ.get("KUBERNETES_MINOR") == "1.31", reason="its API server judges unchanged blocks by new rules, too"
)
def test_a_job_that_a_new_rule_would_refuse_at_creation_can_be_changed_where_it_is_not_fixed(
    api: client.ApiClient,
) -> None:
    definitions, objects = client.ApiextensionsV1Api(api), client.CustomObjectsApi(api)
    where = (GROUP, names.VERSION, "default", names.PLURAL)

    def create(name: str, **options: Any) -> bool:
        body = {"apiVersion": f"{GROUP}/{names.VERSION}", "kind": names.KIND, "metadata": {"name": name}, "spec": SPEC}
        try:
            objects.create_namespaced_custom_object(*where, body, **options)
        except client.ApiException as error:
            if error.status in {404, 422}:
                return False
            raise
        return True

    definitions.create_custom_resource_definition(build_other_crd(is_earlier=True))
    wait_until(lambda: create("stored"))
    replace_crd(definitions, build_other_crd(is_earlier=False))
    wait_until(lambda: not create("refused", dry_run="All"))
    stored = objects.get_namespaced_custom_object(*where, "stored")
    stored["spec"]["suspend"] = True
    again = objects.replace_namespaced_custom_object(*where, "stored", stored)
    objects.patch_namespaced_custom_object_status(*where, "stored", {"status": {"message": "runs"}})
    assert again["spec"]["suspend"] is True
    assert again["spec"]["tuning"]["lora"] == {"dropout": 0.1}
