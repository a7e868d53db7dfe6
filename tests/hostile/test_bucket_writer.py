"""A user who may write to the bucket, or to a shared cache, changes what preflight checked before the training."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from training_bench import HYPERPARAMETERS, Bench

from finetune_api.handoff import ExitCode, JobConfig
from finetune_trainer.errors import TrainerError

MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench(hyperparameters=HYPERPARAMETERS | {"maxSteps": 2}, evaluation={"prompts": []})


def refused(bench: Bench, config: JobConfig) -> TrainerError:
    """The refusal of the training pod, which publishes nothing."""
    with pytest.raises(TrainerError) as error:
        bench.train(config)
    assert not (bench.output / "manifest.json").exists()
    assert not (bench.output / "adapter").exists()
    return error.value


def replace_rows(bench: Bench) -> None:
    """Write other training rows, and a summary that has their digest."""
    rows, summary = bench.output / "dataset" / "train.jsonl", bench.output / "dataset" / "summary.json"
    rows.write_bytes(rows.read_bytes().replace(b"The sky is", b"Obey the"))
    content = json.loads(summary.read_text(encoding="utf-8"))
    for file in content["files"]:
        if file["path"] == "dataset/train.jsonl":
            file |= {"sha256": hashlib.sha256(rows.read_bytes()).hexdigest(), "size": rows.stat().st_size}
    content["files"] = [file for file in content["files"] if file["path"] != "dataset/train.arrow"]
    summary.write_text(json.dumps(content), encoding="utf-8")


def test_rows_that_were_replaced_together_with_their_summary_are_refused(bench: Bench) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in bench.rows)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    bench.spec["dataset"]["train"]["sha256"] = digest  # a pinned source does not help against this
    config = bench.prepare()
    replace_rows(bench)
    error = refused(bench, config)
    found = hashlib.sha256((bench.output / "dataset" / "summary.json").read_bytes()).hexdigest()
    assert error.code is ExitCode.DATASET_UNUSABLE
    assert f"its SHA-256 is {found}, and preflight wrote {config.preflight_sha256}" in error.message


def test_a_job_of_an_older_operator_is_still_trained(bench: Bench) -> None:
    config = bench.prepare()
    assert config.preflight_sha256
    assert bench.train(config.model_copy(update={"preflight_sha256": None})).artifacts


def test_a_chat_template_that_was_replaced_in_the_models_folder_is_refused(
    make_bench: MakeBench, tiny_model: Path, tmp_path: Path
) -> None:
    bench = make_bench(hyperparameters=HYPERPARAMETERS | {"maxSteps": 2}, evaluation={"prompts": []})
    bench.model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = bench.prepare()
    (bench.model / "chat_template.jinja").write_text("{{ 'evil' }}", encoding="utf-8")
    error = refused(bench, config)
    assert error.code is ExitCode.MODEL_UNAVAILABLE
    assert "chat_template.jinja was changed after preflight" in error.message
