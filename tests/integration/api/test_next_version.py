"""How v1alpha1 becomes v1beta1, tried with a version of that name: decision 0039."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from replaced_crd import replace_crd
from waiting import wait_until

from finetune_api import names
from finetune_api.schema.crd import build_crd

GROUP, OLD, NEW = "versions.example", names.VERSION, "v1beta1"
NAME = f"{names.PLURAL}.{GROUP}"
SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "s3://models/base"},
    "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
    "output": {"uri": "s3://models/out"},
}


@pytest.fixture
def api(control_plane: Path) -> Iterator[client.ApiClient]:
    with config.new_client_from_config(str(control_plane)) as connected:
        yield connected
        client.ApiextensionsV1Api(connected).delete_custom_resource_definition(NAME)


def crd(*, served: tuple[str, ...], stored: str) -> dict[str, Any]:
    """Return our CRD in a group of its own, with the same schema under each version."""
    made = copy.deepcopy(build_crd())
    made["metadata"]["name"] = NAME
    made["spec"]["group"] = GROUP
    made["spec"]["names"] |= {"shortNames": [], "categories": []}
    (version,) = made["spec"]["versions"]
    listed = sorted({*served, stored})
    made["spec"]["versions"] = [
        version | {"name": one, "served": one in served, "storage": one == stored} for one in listed
    ]
    return made


def test_jobs_pass_to_the_next_version_without_a_webhook(api: client.ApiClient) -> None:
    definitions, objects = client.ApiextensionsV1Api(api), client.CustomObjectsApi(api)

    def read(version: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = objects.get_namespaced_custom_object(GROUP, version, "default", names.PLURAL, "one")
        except client.ApiException as error:
            if error.status != 404:
                raise
            return None
        return found

    def create() -> bool:
        body = {"apiVersion": f"{GROUP}/{OLD}", "kind": names.KIND, "metadata": {"name": "one"}, "spec": SPEC}
        try:
            objects.create_namespaced_custom_object(GROUP, OLD, "default", names.PLURAL, body)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return False
        return True

    definitions.create_custom_resource_definition(crd(served=(OLD,), stored=OLD))
    wait_until(create)
    job = read(OLD)
    assert job
    # One release serves both, and stores the old one: it can be taken back.
    replace_crd(definitions, crd(served=(OLD, NEW), stored=OLD))
    wait_until(lambda: read(NEW))
    assert (read(NEW) or {})["spec"] == job["spec"]

    # The next one stores the new one; each object is written again, and the old one leaves the list.
    replace_crd(definitions, crd(served=(OLD, NEW), stored=NEW))
    wait_until(lambda: definitions.read_custom_resource_definition(NAME).status.stored_versions == [OLD, NEW])

    def is_stored_again() -> bool:
        """Write the object without a change; that has an effect once the API server stores it in another version."""
        before = (read(NEW) or {})["metadata"]["resourceVersion"]
        patched = objects.patch_namespaced_custom_object(GROUP, NEW, "default", names.PLURAL, "one", {"metadata": {}})
        return bool(patched["metadata"]["resourceVersion"] != before)

    wait_until(is_stored_again)
    definitions.patch_custom_resource_definition_status(NAME, {"status": {"storedVersions": [NEW]}})

    # The last one serves the new one alone.
    replace_crd(definitions, crd(served=(NEW,), stored=NEW))
    wait_until(lambda: read(OLD) is None)
    after = read(NEW)
    assert after
    assert after["spec"] == job["spec"]
    assert after["metadata"]["uid"] == job["metadata"]["uid"]
