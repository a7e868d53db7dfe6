"""`finetune-trainer run` as a user types it: a manifest, local folders, no cluster, no S3."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import Hub
from published_result import find_result_faults
from tiny_model import make_tiny_model

from finetune_api.handoff import ExitCode
from finetune_trainer.storage.local import LocalStore

JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: local}
spec:
  objective: Instruction
  model: {uri: s3://bucket/model}
  tuning: {method: LoRA, lora: {rank: 2}}
  dataset:
    train: {uri: s3://bucket/rows.jsonl}
  hyperparameters: {learningRate: 2e-3, maxLength: 64, maxSteps: 2, gradientAccumulationSteps: 1}
  output: {uri: s3://bucket/out}
"""


CHILD = (
    JOB.replace("name: local", "name: child")
    .replace("Instruction", "Chat\n  lineage: {parentRef: {name: local}}")
    .replace("lora: {rank: 2}", "initialAdapter: {fromParent: true}")
    .replace("bucket/out", "bucket/child")
)


MAPS = ("--map", "s3://bucket/rows.jsonl=rows.jsonl", "--map", "s3://bucket/model=model")


def run(
    folder: Path,
    *options: str,
    python: str = sys.executable,
    maps: tuple[str, ...] = MAPS,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            python, "-m", "finetune_trainer", "run", "job.yaml", "--output", "out", *maps, *options,
        ],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trainer_python: str) -> Path:
    """A folder in which the job has been run once."""
    folder = tmp_path_factory.mktemp("run")
    make_tiny_model(folder / "model")
    rows = [{"instruction": f"Is {index} even?", "output": "yes" if index % 2 == 0 else "no"} for index in range(50)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "job.yaml").write_text(JOB)
    done = run(folder, python=trainer_python)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_result_is_in_the_output_folder_and_is_complete(folder: Path) -> None:
    storage = LocalStore({"s3://bucket/out": folder / "out"})
    assert find_result_faults("s3://bucket/out", storage) == []
    names = {path.name for path in (folder / "out").rglob("*")}
    assert {"adapter_model.safetensors", "finetune_config.yaml", "finetune_report.md", "lineage.json"} <= names


def test_a_run_with_other_rows_or_another_base_does_not_get_the_result_that_is_there(
    folder: Path, trainer_python: str
) -> None:
    before = (folder / "out" / "manifest.json").read_bytes()
    make_tiny_model(folder / "model2", seed=99)
    (folder / "rows2.jsonl").write_text((folder / "rows.jsonl").read_text().replace("even", "odd"))
    for change, differing in (("rows.jsonl", "the rows of rows2.jsonl differ"), ("model", " of model2 differs")):
        other = change.replace("rows", "rows2").replace("model", "model2")
        done = run(folder, "--map", f"s3://bucket/{change}={other}", python=trainer_python)
        assert done.returncode == ExitCode.OUTPUT_CONFLICT
        assert "out has the result of an earlier run with other inputs" in done.stderr
        assert differing in done.stderr
        assert "Choose another --output, or move that folder away" in done.stderr
    assert (folder / "out" / "manifest.json").read_bytes() == before


def test_the_same_run_again_is_adopted_and_trains_nothing(folder: Path, trainer_python: str) -> None:
    before = (folder / "out" / "manifest.json").read_bytes()
    done = run(folder, python=trainer_python)
    assert done.returncode == 0
    assert "Adopted" in done.stderr
    assert "nothing was trained" in done.stderr
    assert '"Training"' not in done.stdout
    assert (folder / "out" / "manifest.json").read_bytes() == before


def test_another_spec_into_the_same_folder_is_a_conflict(folder: Path, trainer_python: str) -> None:
    (folder / "job.yaml").write_text(JOB.replace("maxSteps: 2", "maxSteps: 3"))
    try:
        done = run(folder, python=trainer_python)
    finally:
        (folder / "job.yaml").write_text(JOB)
    assert done.returncode == 73
    assert "out belongs to an earlier FineTuneJob default/local with another spec: choose another --out" in done.stderr
    assert "s3://bucket/out" not in done.stderr


@pytest.mark.nightly
def test_the_published_configuration_can_be_run_again(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text((folder / "out" / "finetune_config.yaml").read_text())
    for name in ("model", "rows.jsonl"):
        (tmp_path / name).symlink_to(folder / name)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr

    def loss(root: Path) -> float:
        return float(json.loads((root / "out" / "lineage.json").read_text())["metrics"]["trainLoss"])

    assert loss(tmp_path) == loss(folder)


@pytest.mark.nightly
def test_a_chain_runs_from_one_file_parents_first(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"{CHILD}---{JOB}")
    for name in ("model", "rows.jsonl"):
        (tmp_path / name).symlink_to(folder / name)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    parent, child = tmp_path / "out" / "local", tmp_path / "out" / "child"
    lineage = json.loads((child / "lineage.json").read_text())
    assert lineage["parent"]["manifestSHA256"] == hashlib.sha256((parent / "manifest.json").read_bytes()).hexdigest()
    assert lineage["resolved"]["loraRank"] == 2
    whole = verify_by_hand(tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "parent default/local s3://bucket/out sha256:" in whole.stdout
    (parent / "manifest.json").write_bytes((parent / "manifest.json").read_bytes() + b"\n")
    broken = verify_by_hand(tmp_path)
    assert broken.returncode == 1
    assert broken.stderr.startswith("BAD parent s3://bucket/out has a manifest.json of SHA-256 ")


def verify_by_hand(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune_trainer", "verify", "out/child", "--map", "s3://bucket/out=out/local"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.nightly
def test_a_child_alone_finds_its_parents_result(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(CHILD)
    for name in ("model", "rows.jsonl"):
        (tmp_path / name).symlink_to(folder / name)
    refused = run(tmp_path)
    assert refused.returncode == 64
    assert "--job local=DIR" in refused.stderr
    done = run(tmp_path, "--job", f"local={folder / 'out'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "lineage.json").read_text())["initialAdapter"]["uri"].endswith("out/adapter")


@pytest.mark.parametrize(
    ("token", "fix"),
    [
        (None, "and put that account's token into HF_TOKEN"),
        ("hf_testtoken", "with the account of the token in HF_TOKEN"),
        ("hf_old", "the token is invalid or has expired: put a new one into HF_TOKEN"),
    ],
)
def test_a_gated_model_of_the_hub_in_hf_endpoint_is_refused_with_what_to_set(
    tmp_path: Path, token: str | None, fix: str
) -> None:
    make_tiny_model(tmp_path / "hub" / "models" / "acme" / "tiny")
    (tmp_path / "job.yaml").write_text(JOB.replace("s3://bucket/model", "hf://acme/tiny"))
    with Hub(tmp_path / "hub", gated={"acme/tiny"}).serving() as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        done = run(tmp_path, maps=(), environment=environment | ({"HF_TOKEN": token} if token else {}))
    assert done.returncode == 66
    assert fix in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_hf_endpoint_that_is_not_a_url_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.replace("s3://bucket/model", "hf://acme/tiny"))
    done = run(tmp_path, maps=(), environment={"HF_ENDPOINT": "http://mirror:99999"})
    assert done.returncode == 64
    assert "HF_ENDPOINT is 'http://mirror:99999': write https://host" in done.stderr


@pytest.mark.parametrize("uri", ["s3://bucket/support/", "s3://bucket/rows.jsonl", "hf://datasets/owner/rows"])
def test_a_csv_file_in_place_of_any_uri_is_checked(folder: Path, tmp_path: Path, uri: str, trainer_python: str) -> None:
    (tmp_path / "good.csv").write_text("instruction,output\n,\n,\n")
    (tmp_path / "job.yaml").write_text(JOB.replace("s3://bucket/rows.jsonl", uri))
    maps = ("--map", f"{uri}=good.csv", "--map", f"s3://bucket/model={folder / 'model'}")
    done = run(tmp_path, python=trainer_python, maps=maps)
    assert done.returncode == 65
    assert "good.csv: none of the 2 rows can be used" in done.stderr
    assert "Every rejected row: out/refused/" in done.stderr
