"""Which tracker or reward server of a job may get the key of this machine."""

from typing import Any

import pytest

from finetune_trainer.commands.local_servers import require_own_graders, require_own_trackers
from finetune_trainer.errors import TrainerError

MLFLOW = {"mlflow": {"endpoint": "https://mlflow.example", "experiment": "e"}}
WANDB = {"wandb": {"project": "p", "credentialsSecretRef": {"name": "w"}}}
NAMES = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_BASE_URL")


def explain(world: Any, monkeypatch: pytest.MonkeyPatch, tracking: Any, *named: str, **environment: str) -> str:
    """Why the job may not begin; empty if it may."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    world.with_config({"tracking": tracking})
    try:
        require_own_trackers(world.config, named)
    except TrainerError as error:
        return error.message
    return ""


def test_a_tracker_without_a_key_on_this_machine_is_not_refused(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain(world, monkeypatch, MLFLOW | WANDB) == ""
    assert explain(world, monkeypatch, None, WANDB_API_KEY="k", MLFLOW_TRACKING_TOKEN="t") == ""
    offline = {"wandb": {"project": "p", "mode": "Offline"}}
    assert explain(world, monkeypatch, offline, WANDB_API_KEY="k", WANDB_BASE_URL="http://wandb.example") == ""


@pytest.mark.parametrize("key", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME"])
def test_a_key_of_mlflow_belongs_to_the_server_of_its_variable(
    world: Any, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    keys = {key: "mine"}
    why = explain(world, monkeypatch, MLFLOW, **keys)
    assert f"{key} belongs to no server, because MLFLOW_TRACKING_URI is not set" in why
    assert explain(world, monkeypatch, MLFLOW, MLFLOW_TRACKING_URI="https://mlflow.example/", **keys) == ""
    assert explain(world, monkeypatch, MLFLOW, "https://mlflow.example", **keys) == ""
    for other in ("https://other.example", "file:./mlruns", "https://anna:hunter2@mlflow.example"):
        why = explain(world, monkeypatch, MLFLOW, MLFLOW_TRACKING_URI=other, **keys)
        assert "add --send-keys-to https://mlflow.example" in why
        assert "hunter2" not in why


def test_a_key_of_wandb_belongs_to_its_own_server_also_if_the_job_names_none(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert explain(world, monkeypatch, WANDB, WANDB_API_KEY="k") == ""
    assert explain(world, monkeypatch, WANDB, WANDB_API_KEY="k", WANDB_BASE_URL="https://wandb.example") == ""
    public = {"wandb": WANDB["wandb"] | {"endpoint": "https://api.wandb.ai"}}
    assert explain(world, monkeypatch, public, WANDB_API_KEY="k") == ""
    why = explain(world, monkeypatch, public, WANDB_API_KEY="k", WANDB_BASE_URL="https://wandb.example")
    assert why.startswith(
        "job: spec.tracking.wandb.endpoint is https://api.wandb.ai, but WANDB_API_KEY belongs to https://wandb.example"
    )
    why = explain(world, monkeypatch, WANDB, WANDB_API_KEY="k", WANDB_BASE_URL="http://wandb.example")
    assert "WANDB_BASE_URL is http://wandb.example, but WANDB_API_KEY is not sent over http" in why
    assert explain(world, monkeypatch, WANDB, WANDB_API_KEY="k", WANDB_BASE_URL="wandb.example").startswith(
        "WANDB_BASE_URL is not a URL"
    )


def explain_grader(world: Any, monkeypatch: pytest.MonkeyPatch, service: Any, *named: str, **environment: str) -> str:
    for name in ("REWARD_TOKEN", "REWARD_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rewards = [{"type": "Length", "targetTokens": 4}, {"type": "Service", "service": service}]
    world.with_config({"objective": "RLHF", "rlhf": {"rewards": rewards}})
    try:
        require_own_graders(world.config, named)
    except TrainerError as error:
        return error.message
    return ""


def test_a_token_for_rewards_belongs_to_the_server_of_its_variable(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = "https://grader.example/score"
    service, token = {"endpoint": endpoint, "credentialsSecretRef": {"name": "s"}}, {"REWARD_TOKEN": "hunter2"}
    assert explain_grader(world, monkeypatch, {"endpoint": endpoint}, **token) == ""
    field = "job: spec.rlhf.rewards[1].service"
    assert explain_grader(world, monkeypatch, service).startswith(f"{field}.credentialsSecretRef")
    why = explain_grader(world, monkeypatch, service, **token)
    assert why.startswith(f"{field}.endpoint is {endpoint}, but REWARD_TOKEN belongs to no server")
    assert explain_grader(world, monkeypatch, service, REWARD_ENDPOINT=endpoint, **token) == ""
    assert explain_grader(world, monkeypatch, service, endpoint, **token) == ""
    other = explain_grader(world, monkeypatch, service, REWARD_ENDPOINT="https://other.example", **token)
    assert f"add --send-keys-to {endpoint}" in other
    plain = service | {"endpoint": "http://grader.example/score"}
    why = explain_grader(world, monkeypatch, plain, REWARD_ENDPOINT="http://grader.example/score", **token)
    assert "REWARD_TOKEN is not sent over http" in why
