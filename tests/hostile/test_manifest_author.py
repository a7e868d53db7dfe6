"""The keys of a developer's machine, and manifests that name servers of others: each key goes to its own server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from trackers import Request, refusing_server

KEYS = {
    "HF_TOKEN": "hf_mine",
    "MLFLOW_TRACKING_TOKEN": "mlflow-mine",
    "WANDB_API_KEY": "w" * 40,
    "AWS_ACCESS_KEY_ID": "AKIDMINE",
    "AWS_SECRET_ACCESS_KEY": "secret-mine",
    "AWS_MAX_ATTEMPTS": "1",
    "NO_PROXY": "127.0.0.1",
}
SERVERS = ("HF_ENDPOINT", "MLFLOW_TRACKING_URI", "WANDB_BASE_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


def keys_in(requests: list[Request]) -> set[str | None]:
    """The keys of the requests, all of which are for the repository: the hub's library adds none of its own."""
    assert {one.path.split("/revision/")[0] for one in requests} == {"/api/models/acme/tiny"}
    return {one.authorization for one in requests}


def write_job(folder: Path, **spec: object) -> None:
    content = {
        "objective": "Chat",
        "model": {"uri": "s3://bucket/model"},
        "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
        "output": {"uri": "s3://bucket/out"},
    }
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "foreign"},
        "spec": content | spec,
    }
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(job))


def trainer(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    # A trainer that was imported here has set the variables of the hub's library.
    others = ("AWS_", "HF_HUB_")
    known = {name: value for name, value in os.environ.items() if name not in SERVERS and not name.startswith(others)}
    return subprocess.run(
        [sys.executable, "-m", "finetune_trainer", *arguments],
        cwd=folder,
        env=known | KEYS | {"HF_HOME": str(folder), "AWS_CONFIG_FILE": str(folder / "none")} | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run(folder: Path, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return trainer(folder, "run", "job.yaml", "--output", "out", *options, **environment)


def test_a_manifests_hub_is_asked_without_the_token_of_another_hub(tmp_path: Path) -> None:
    with refusing_server(404) as (uri, asked):
        write_job(tmp_path, model={"uri": "hf://acme/tiny"}, hub={"endpoint": uri})
        done = run(tmp_path)
        assert keys_in(asked) == {None}
        assert done.returncode == 66
        fix = f"spec.hub.endpoint is {uri}, but the token in HF_TOKEN belongs to https://huggingface.co "
        assert fix in done.stderr
        assert f"add --send-keys-to {uri}" in done.stderr
        asked.clear()
        run(tmp_path, "--send-keys-to", "http://127.0.0.1:9")
        assert keys_in(asked) == {None}


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_a_hub_that_the_user_names_gets_the_token(tmp_path: Path, by: str) -> None:
    with refusing_server(404) as (uri, asked):
        write_job(tmp_path, model={"uri": "hf://acme/tiny"}, hub={"endpoint": f"{uri}/"})
        done = run(tmp_path, "--send-keys-to", uri) if by == "flag" else run(tmp_path, HF_ENDPOINT=uri)
    assert keys_in(asked) == {"Bearer hf_mine"}
    assert "--send-keys-to" not in done.stderr


def test_no_request_is_signed_for_a_store_that_a_manifest_alone_names(tmp_path: Path) -> None:
    with refusing_server(403) as (uri, asked):
        write_job(tmp_path, storage={"endpoint": uri})
        done = run(tmp_path)
    assert asked == []
    assert done.returncode == 64
    assert f"spec.storage.endpoint is {uri}, but the AWS key of this machine belongs to https://s3." in done.stderr
    assert f"add --send-keys-to {uri}" in done.stderr
    assert "secret-mine" not in done.stderr


@pytest.mark.parametrize("by", ["flag", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "profile"])
def test_a_store_that_the_user_names_gets_signed_requests(tmp_path: Path, by: str) -> None:
    with refusing_server(403) as (uri, asked):
        write_job(tmp_path, storage={"endpoint": uri})
        (tmp_path / "aws").write_text(f"[default]\nendpoint_url = {uri}\n")
        environment = {"AWS_CONFIG_FILE": "aws"} if by == "profile" else {by: uri} if by != "flag" else {}
        done = run(tmp_path, *(["--send-keys-to", uri] if by == "flag" else []), **environment)
    assert done.returncode == 77, done.stderr
    assert asked
    assert all((one.authorization or "").startswith("AWS4-HMAC-SHA256 Credential=AKIDMINE/") for one in asked)


def test_the_endpoint_of_s3_has_precedence_over_that_of_all_of_aws(tmp_path: Path) -> None:
    with refusing_server(403) as (own, asked), refusing_server(403) as (other, others):
        write_job(tmp_path)
        run(tmp_path, AWS_ENDPOINT_URL=other, AWS_ENDPOINT_URL_S3=own)
        trainer(tmp_path, "verify", "s3://bucket/out", AWS_ENDPOINT_URL=other, AWS_ENDPOINT_URL_S3=own)
    assert others == []
    assert {one.path.partition("?")[0] for one in asked} == {"/bucket", "/bucket/out/manifest.json"}


TRACKERS = {
    "mlflow": ("spec.tracking.mlflow.endpoint", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI"),
    "wandb": ("spec.tracking.wandb.endpoint", "WANDB_API_KEY", "WANDB_BASE_URL"),
}


def tracking(kind: str, uri: str) -> dict[str, object]:
    if kind == "mlflow":
        return {"mlflow": {"endpoint": uri, "experiment": "e"}}
    return {"wandb": {"project": "p", "endpoint": uri, "credentialsSecretRef": {"name": "w"}}}


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_run_with_the_key_of_another_tracker_does_not_begin(tmp_path: Path, kind: str) -> None:
    field, key, setting = TRACKERS[kind]
    with refusing_server(500) as (uri, asked), refusing_server(403) as (store, stored):
        write_job(tmp_path, tracking=tracking(kind, uri))
        for environment in ({}, {setting: "https://own.example"}):
            done = run(tmp_path, AWS_ENDPOINT_URL=store, **environment)
            assert done.returncode == 64
            assert f"{field} is {uri}, but {key} belongs to " in done.stderr
            assert f"add --send-keys-to {uri}" in done.stderr
        assert (asked, stored) == ([], [])
        for options, environment in (([], {setting: uri}), (["--send-keys-to", uri], {})):
            done = run(tmp_path, *options, AWS_ENDPOINT_URL=store, **environment)
            assert done.returncode == 77, done.stderr
        assert stored


@pytest.mark.parametrize("kind", TRACKERS)
def test_no_flag_sends_a_trackers_key_over_http_to_another_machine(tmp_path: Path, kind: str) -> None:
    field, key, setting = TRACKERS[kind]
    uri = "http://tracker.example:5000"
    write_job(tmp_path, tracking=tracking(kind, uri))
    done = run(tmp_path, "--send-keys-to", uri, **{setting: uri})
    assert done.returncode == 64
    assert f"{field} is {uri}, but {key} is not sent over http, which is not encrypted" in done.stderr


def test_a_result_of_another_author_does_not_get_the_token_from_a_conversation(tmp_path: Path) -> None:
    adapter = tmp_path / "result" / "adapter"
    adapter.mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "acme/tiny", "r": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros(1, np.float32)}, adapter / "adapter_model.safetensors")
    with refusing_server(404) as (uri, asked):
        write_job(tmp_path / "result", hub={"endpoint": uri})
        (tmp_path / "result" / "job.yaml").rename(tmp_path / "result" / "finetune_config.yaml")
        done = trainer(tmp_path, "chat", "result", "--prompt", "Hello")
        assert keys_in(asked) == {None}
        assert f"add --send-keys-to {uri}" in done.stderr
        asked.clear()
        trainer(tmp_path, "chat", "result", "--prompt", "Hello", "--send-keys-to", uri)
        assert keys_in(asked) == {"Bearer hf_mine"}


def test_a_server_that_is_not_a_url_is_invalid_usage(tmp_path: Path) -> None:
    write_job(tmp_path)
    done = run(tmp_path, "--send-keys-to", "minio.example:9000")
    assert done.returncode == 2
    assert "minio.example:9000" in done.stderr
