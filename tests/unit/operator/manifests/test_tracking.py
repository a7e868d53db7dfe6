"""`spec.tracking`: what is mounted into the pods, and which servers are allowed."""

from typing import Any

import pytest

from finetune_api.handoff import config_sha256
from finetune_operator.policy.admission import find_refusal
from finetune_operator.settings import Settings

MLFLOW = {"endpoint": "http://mlflow.mlflow:5000", "experiment": "support"}
WANDB = {"project": "support", "credentialsSecretRef": {"name": "wandb"}, "caSecretRef": {"name": "authority"}}
SECRETS = {"credentialsSecretRef": {"name": "mlflow"}, "caSecretRef": {"name": "authority"}}
BOTH = {"mlflow": MLFLOW | SECRETS, "wandb": WANDB}
NAMES = {"mlflow", "mlflow-ca", "wandb", "wandb-ca"}


def mounts(job: Any) -> dict[str, str]:
    container = job["spec"]["template"]["spec"]["containers"][0]
    return {one["name"]: one["mountPath"] for one in container["volumeMounts"]}


def test_the_trainer_alone_gets_the_trackers_secrets_as_files(built: Any) -> None:
    job = built(tracking=BOTH)
    volumes = {one["name"]: one for one in job["spec"]["template"]["spec"]["volumes"]}
    assert mounts(job)["mlflow"] == "/etc/finetune/mlflow"
    assert mounts(job)["wandb"] == "/etc/finetune/wandb"
    assert mounts(job)["mlflow-ca"] == "/etc/finetune/mlflow-ca"
    assert mounts(job)["wandb-ca"] == "/etc/finetune/wandb-ca"
    assert volumes["wandb"]["secret"]["secretName"] == "wandb"
    assert volumes["mlflow-ca"]["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    assert not NAMES & mounts(built("preflight", tracking=BOTH)).keys()


def test_a_missing_secret_of_a_tracker_keeps_no_pod_from_starting(built: Any) -> None:
    volumes = built(tracking=BOTH)["spec"]["template"]["spec"]["volumes"]
    assert [one["secret"]["optional"] for one in volumes if one["name"] in NAMES] == [True] * 4


def test_a_tracker_without_a_secret_mounts_none(built: Any) -> None:
    offline = {"mlflow": MLFLOW, "wandb": {"project": "p", "mode": "Offline"}}
    assert not NAMES & mounts(built(tracking=offline)).keys()


def test_tracking_may_change_at_any_time(scene: Any) -> None:
    assert config_sha256(scene(tracking=BOTH).job.spec) == config_sha256(scene().job.spec)


@pytest.mark.parametrize(
    ("tracking", "allowed", "is_allowed"),
    [
        ({"mlflow": MLFLOW}, [], True),
        ({"mlflow": MLFLOW}, ["http://mlflow.mlflow:5000"], True),
        ({"mlflow": MLFLOW}, ["https://*.example"], False),
        ({"wandb": WANDB}, ["https://*.example"], False),
        ({"wandb": WANDB}, ["https://api.wandb.ai"], True),
        ({"wandb": WANDB | {"endpoint": "https://wandb.example"}}, ["https://*.example"], True),
        ({"wandb": {"project": "p", "mode": "Offline"}}, ["https://*.example"], True),
        ({"tensorboard": True}, ["https://*.example"], True),
    ],
)
def test_a_tracker_is_judged_by_its_address(scene: Any, tracking: Any, allowed: list[str], is_allowed: bool) -> None:
    settings = Settings(trainer_image="registry.example/trainer:1", allowed_tracking_endpoints=allowed)
    found = find_refusal(scene(tracking=tracking).job, settings)
    assert (found is None) == is_allowed, found
    assert is_allowed or "add it to FINETUNE_ALLOWED_TRACKING_ENDPOINTS" in (found or "")


@pytest.mark.parametrize("address", ["http://169.254.169.254", "http://2852039166", "http://metadata.google.internal"])
@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_no_list_allows_a_metadata_address_as_a_tracker(scene: Any, tracker: str, address: str) -> None:
    given = {"mlflow": {"mlflow": MLFLOW | {"endpoint": address}}, "wandb": {"wandb": WANDB | {"endpoint": address}}}
    settings = Settings(trainer_image="x/y:1", allowed_tracking_endpoints=["*", address])
    assert "never allowed" in (find_refusal(scene(tracking=given[tracker]).job, settings) or "")
