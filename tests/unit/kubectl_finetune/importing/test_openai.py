"""A request of OpenAI's API becomes a job; model and files have to be given."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubectl_finetune.commands.import_file import Imported, import_file
from kubectl_finetune.importing.draft import Options

GIVEN = Options(model="hf://acme/base-1b", data="s3://data/rows.jsonl", result="s3://models/out", gpus=2)
GIVEN_ONE = replace(GIVEN, gpus=1)
Read = Callable[..., Imported]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Import a request."""

    def call(options: Options, **changes: Any) -> Imported:
        path = tmp_path / "request.json"
        path.write_text(json.dumps({"model": "hosted-model", "training_file": "file-1"} | changes))
        return import_file(path, "", options)

    return call


def method(kind: str, **hyperparameters: Any) -> dict[str, Any]:
    return {"type": kind, kind: {"hyperparameters": hyperparameters}}


def test_a_supervised_request_is_a_chat_job_with_the_same_batch(read: Read) -> None:
    done = read(GIVEN, method=method("supervised", n_epochs=4, batch_size=12), seed=5, suffix="Support Bot!")
    assert done.manifest is not None
    assert (done.problems, done.fill_in, done.not_carried) == ([], [], [])
    assert done.manifest["metadata"] == {"name": "support-bot"}
    assert done.manifest["spec"] == {
        "objective": "Chat",
        "model": {"uri": "hf://acme/base-1b"},
        "tuning": {"method": "QLoRA"},
        "dataset": {"train": {"uri": "s3://data/rows.jsonl"}, "format": "OpenAI"},
        "hyperparameters": {
            "numTrainEpochs": 4,
            "perDeviceTrainBatchSize": 2,
            "gradientAccumulationSteps": 3,
            "seed": 5,
        },
        "output": {"uri": "s3://models/out"},
        "resources": {"gpusPerNode": 2},
    }


def test_auto_is_our_default(read: Read) -> None:
    settings = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    done = read(GIVEN, method=method("supervised", **settings))
    assert done.manifest is not None
    assert "hyperparameters" not in done.manifest["spec"]
    assert done.not_carried == []


def test_a_preference_request_is_a_dpo_job(read: Read) -> None:
    done = read(GIVEN, method=method("dpo", beta=0.2))
    assert done.manifest is not None
    assert done.manifest["spec"]["dpo"] == {"beta": 0.2}
    assert done.manifest["spec"]["dataset"]["format"] == "Preference"
    assert done.problems == []


def test_the_older_form_of_hyperparameters_is_read_too(read: Read) -> None:
    done = read(GIVEN, hyperparameters={"n_epochs": 2, "learning_rate_multiplier": 1.8})
    assert done.manifest is not None
    assert done.manifest["spec"]["hyperparameters"] == {"numTrainEpochs": 2}
    assert [one.key for one in done.not_carried] == ["hyperparameters.learning_rate_multiplier"]


def test_hosted_models_and_uploaded_files_are_to_be_filled_in(read: Read) -> None:
    done = read(Options(), validation_file="file-2")
    assert [(one.field, one.key, one.value) for one in done.fill_in] == [
        ("spec.model.uri", "model", "hosted-model"),
        ("spec.dataset.train.uri", "training_file", "file-1"),
        ("spec.dataset.validation.uri", "validation_file", "file-2"),
        ("spec.output.uri", "-", "result"),
    ]


def test_a_grader_that_cannot_be_computed_is_refused(read: Read) -> None:
    grader = {"type": "python", "source": "def grade(sample, item): return 1.0"}
    done = read(GIVEN, method={"type": "reinforcement", "reinforcement": {"grader": grader}})
    assert [(one.key, one.reason) for one in done.refused] == [
        ("method.reinforcement.grader", "a grader of type python cannot be computed")
    ]


def test_a_request_may_be_indented_with_tabs(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text('{\n\t"model": "hosted-model",\n\t"training_file": "file-1"\n}\n')
    done = import_file(path, "", GIVEN)
    assert (done.format, done.problems, done.not_carried) == ("openai", [], [])


def test_a_grader_that_compares_texts_is_a_reward_by_the_rows_column(read: Read) -> None:
    grader = {
        "type": "string_check",
        "operation": "eq",
        "input": "{{sample.output_text}}",
        "reference": "{{item.gold}}",
    }
    done = read(GIVEN_ONE, method={"type": "reinforcement", "reinforcement": {"grader": grader}})
    assert done.manifest is not None
    assert done.problems == []
    assert done.manifest["spec"]["rlhf"] == {
        "rewards": [{"type": "Answer", "answer": {"match": "Exact", "column": "gold"}}]
    }
    other = read(
        GIVEN_ONE, method={"type": "reinforcement", "reinforcement": {"grader": grader | {"operation": "like"}}}
    )
    assert [one.key for one in other.refused] == ["method.reinforcement.grader"]
