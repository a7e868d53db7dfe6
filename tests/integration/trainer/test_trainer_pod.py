"""The trainer pod as a process: stopped, run again, and its lost report restored."""

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub import Hub
from published_result import find_result_faults
from tiny_model import make_tiny_model
from trainer_pod import ROWS, SLOW, Pod, checked, make_config

from finetune_api.handoff import Artifact, CheckpointManifest, Outcome
from finetune_trainer.publishing.publish import find_file_faults
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import connect_s3


@pytest.fixture
def pod(s3_server: Any, bucket: str, tmp_path: Path, aws_environment: None, trainer_python: str) -> Pod:
    storage = S3Store(connect_s3(s3_server.spec()))
    make_tiny_model(tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        storage.upload(path, f"s3://{bucket}/model/{path.name}")
    storage.put(f"s3://{bucket}/rows.jsonl", ROWS.encode())
    return checked(make_config(s3_server, bucket, hyperparameters=SLOW), tmp_path, trainer_python)


def verify_checkpoint(uri: str, storage: S3Store) -> list[str]:
    """Return what is wrong with a checkpoint, by its manifest."""
    manifest = CheckpointManifest.model_validate_json(storage.read(f"{uri}/{Artifact.MANIFEST}") or b"")
    return find_file_faults(uri, manifest.files, storage)


def steps(storage: S3Store, prefix: str) -> list[int]:
    """Return the steps of the published metrics.jsonl, in its order."""
    found = [json.loads(line) for line in (storage.read(f"{prefix}/{Artifact.METRICS}") or b"").splitlines()]
    return [line["step"] for line in found if line["kind"] == "train"]


def test_a_stopped_trainer_publishes_nothing_and_the_next_one_resumes(pod: Pod, s3_server: Any) -> None:
    """Stop at any step; the next pod finds an incomplete checkpoint next to the complete one."""
    storage, prefix = S3Store(connect_s3(s3_server.spec())), pod.config.output_key()

    process = pod.start("train")
    seen = pod.wait_for_step(process, random.randint(2, 40))
    assert seen.job_uid == "uid-1"
    assert seen.progress.total_steps == 60
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 75, (pod.directory / "stderr").read_text()
    stopped = pod.report()
    assert (stopped.outcome, stopped.reason) == (Outcome.PREEMPTED, "Preempted")
    assert stopped.last_step is not None
    assert 2 <= stopped.last_step < 60
    assert stopped.checkpoint
    assert stopped.checkpoint.step == stopped.last_step
    assert stopped.checkpoint.sha256 == storage.sha256(f"{stopped.checkpoint.uri}/{Artifact.MANIFEST}")
    assert storage.read(f"{prefix}/{Artifact.MANIFEST}") is None
    assert verify_checkpoint(stopped.checkpoint.uri, storage) == []
    storage.put(f"{prefix}/checkpoints/step-000059/weights.safetensors", b"torn")

    process = pod.start("train")
    resumed = pod.wait_for_step(process, stopped.last_step + 1)
    assert resumed.progress.resumed_from_step == stopped.last_step
    (told,) = resumed.stopped_runs or []  # preflight was the first pod
    assert (told.pod_name, told.pod_uid, told.attempt) == ("pod-2", "pod-2-uid", 1)
    assert told.last_step == stopped.last_step
    assert told.start_time < told.end_time
    assert resumed.progress.note == (
        "skipped broken checkpoints: step-000059: it has no manifest, so it was not saved completely"
    )
    assert process.wait(600) == 0, (pod.directory / "stderr").read_text()
    published = pod.report()
    assert (published.outcome, published.last_step) == (Outcome.PUBLISHED, 60)
    assert published.resumed_from_step == stopped.last_step
    assert published.stopped_runs == [told]
    assert published.artifacts is not None
    assert published.artifacts.manifest_sha256 == storage.sha256(f"{prefix}/{Artifact.MANIFEST}")
    assert steps(storage, prefix) == list(range(1, 61))
    assert find_result_faults(prefix, storage) == []
    assert storage.list(f"{prefix}/{Artifact.CHECKPOINTS}") == []
    assert b"checkpoints/" not in (storage.read(f"{prefix}/{Artifact.MANIFEST}") or b"")

    # Only storage shows it: a second training would write other throughput figures into another manifest.
    process = pod.start("train")
    assert process.wait(600) == 0
    again = pod.report()
    assert again.outcome is Outcome.PUBLISHED
    assert again.artifacts == published.artifacts


@pytest.mark.nightly
def test_a_job_from_a_hub_trains_on_the_commits_that_were_checked_though_the_branches_move_on(
    s3_server: Any, bucket: str, tmp_path: Path, aws_environment: None
) -> None:
    models, datasets = tmp_path / "hub" / "models" / "acme", tmp_path / "hub" / "datasets" / "acme"
    make_tiny_model(models / "tiny")
    (datasets / "qa").mkdir(parents=True)
    (datasets / "qa" / "train.jsonl").write_text(ROWS)
    storage = S3Store(connect_s3(s3_server.spec()))
    with Hub(tmp_path / "hub").serving() as hub:
        commit, rows_commit = hub.commit("models", "acme/tiny"), hub.commit("datasets", "acme/qa")
        config = make_config(
            s3_server,
            bucket,
            hub={"endpoint": hub.endpoint},
            model={"uri": "hf://acme/tiny"},
            dataset={"train": {"uri": "hf://datasets/acme/qa"}},
            hyperparameters={"maxSteps": 2, "maxLength": 64, "gradientAccumulationSteps": 1},
        )
        pod = checked(config, tmp_path)
        lineage = pod.report().lineage
        assert lineage is not None
        assert lineage.base_model_revision == commit

        (models / "tiny").rename(models / "tiny@before")
        make_tiny_model(models / "tiny", seed=1)
        assert hub.commit("models", "acme/tiny") != commit
        shutil.rmtree(datasets)
        hub.requests.clear()
        process = pod.start("train")
        assert process.wait(600) == 0, (tmp_path / "stderr").read_text()

    assert {one.path.split("/")[4] for one in hub.transfers() if one.server == "hub"} == {commit}
    lineage = pod.report().lineage
    assert lineage is not None
    assert lineage.base_model_revision == commit
    prefix = config.output_key()
    assert find_result_faults(prefix, storage) == []
    adapter = json.loads(storage.read(f"{prefix}/adapter/adapter_config.json") or b"")
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("acme/tiny", commit)
    again = yaml.safe_load(storage.read(f"{prefix}/{Artifact.CONFIG}") or b"")["spec"]
    assert (again["model"]["revision"], again["dataset"]["train"]["revision"]) == (commit, rows_commit)
    source = json.loads(storage.read(f"{prefix}/{Artifact.LINEAGE}") or b"")["dataset"]["sources"][0]
    assert (source["uri"], source["revision"]) == (f"hf://datasets/acme/qa@{rows_commit}/train.jsonl", rows_commit)
