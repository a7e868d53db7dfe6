"""A request of OpenAI's API becomes a job; model and files have to be given."""

import json
import re
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
    done = read(GIVEN_ONE, method={"type": "reinforcement", "reinforcement": {"grader": grader}})
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


TEXT = {"type": "string_check", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{ item.gold }}"}
GOLD = {"type": "Answer", "answer": {"match": "Exact", "column": "gold"}}


SIMILAR = TEXT | {"type": "text_similarity", "evaluation_metric": "rouge_l", "pass_threshold": 0.8}


@pytest.mark.parametrize(
    ("metric", "similarity"),
    [("fuzzy_match", "FuzzyMatch"), ("rouge_1", "Rouge1"), ("rouge_2", "Rouge2"), ("rouge_l", "RougeL")],
)
def test_a_grader_of_similarity_is_a_reward_with_the_same_measure(read: Read, metric: str, similarity: str) -> None:
    done = graded(read, SIMILAR | {"evaluation_metric": metric})
    assert done.problems == []
    assert done.manifest["spec"]["rlhf"] == {
        "rewards": [{"type": "Answer", "answer": {"match": "Similar", "similarity": similarity, "column": "gold"}}]
    }


def graded(read: Read, grader: dict[str, Any]) -> Any:
    return read(GIVEN_ONE, method={"type": "reinforcement", "reinforcement": {"grader": grader}})


def test_a_weighted_sum_of_graders_is_a_reward_for_each_with_its_weight(read: Read) -> None:
    polite = TEXT | {"operation": "ilike", "reference": "please (?)"}
    sorry = TEXT | {"operation": "like", "reference": "Sorry"}
    formula = "(2 * right + polite) / 2 - 0.25 * sorry"
    done = graded(
        read,
        {
            "type": "multi",
            "graders": {"right": TEXT, "polite": polite, "sorry": sorry},
            "calculate_output": formula,
        },
    )
    assert done.manifest is not None
    assert done.problems == []
    assert done.manifest["spec"]["rlhf"]["rewards"] == [
        GOLD,
        {"type": "Regex", "pattern": r"(?i:please\ \(\?\))", "weight": 0.5},
        {"type": "Regex", "pattern": "Sorry", "weight": -0.25},
    ]


def test_a_grader_that_does_not_count_is_left_out(read: Read) -> None:
    model = {"type": "score_model"}
    formula = "0.1 * right + 0.2 * right + 0 * model"
    done = graded(read, {"type": "multi", "graders": {"right": TEXT, "model": model}, "calculate_output": formula})
    assert done.manifest is not None
    assert done.manifest["spec"]["rlhf"]["rewards"] == [GOLD | {"weight": 0.3}]


def test_a_text_that_is_the_same_for_all_rows_is_the_whole_answer(read: Read) -> None:
    (reward,) = graded(read, TEXT | {"reference": "yes."}).manifest["spec"]["rlhf"]["rewards"]
    assert [bool(re.search(reward["pattern"], text)) for text in (" yes.\n", "yes", "oh yes.")] == [True, False, False]


@pytest.mark.parametrize(
    ("grader", "reason"),
    [
        ({"operation": "like"}, "operation like does not compare with a column of the row, only eq does"),
        ({"operation": "ne", "reference": "no"}, "operation ne is not computed: use eq, like or ilike"),
        ({"reference": "{{item.a}} and {{item.b}}"}, "the reference is neither one column"),
        ({"input": "{{sample.output_json.city}}"}, "only whole answers can be compared"),
        ({"type": "text_similarity"}, "evaluation_metric is missing"),
        (SIMILAR | {"evaluation_metric": "bleu"}, "evaluation_metric bleu is not computed: use fuzzy_match, rouge_1"),
        (SIMILAR | {"reference": "Paris"}, "the reference of a similarity is one column of the row"),
        (SIMILAR | {"input": "{{sample.output_json.x}}"}, "only whole answers can be compared"),
        ({"type": "multi"}, "a grader of type multi has its graders by name"),
        ({"type": "multi", "graders": {"a": TEXT}, "calculate_output": "a + b"}, "calculate_output names b"),
        (
            {"type": "multi", "graders": {"a": {"type": "score_model"}}, "calculate_output": "a"},
            "a: a grader of type score_model cannot be computed",
        ),
        *(
            (
                {"type": "multi", "graders": {"a": TEXT, "b": TEXT}, "calculate_output": formula},
                "is not a sum of graders with weights",
            )
            for formula in ("a * b", "a / b", "min(a, b)", "a ** 2", "a + 1", "3", "a if b else 0", "a / 0", "a +", "")
        ),
        ({"type": "multi", "graders": {"a": TEXT}, "calculate_output": "(" * 5000 + "a"}, "is not a sum"),
        *(
            ({"type": "multi", "graders": {"a": TEXT}, "calculate_output": formula}, "is not a sum of graders")
            for formula in ("a - a", "0 * a", "1" + "0" * 400 + " * a", "5or a")
        ),
        (
            {"type": "multi", "graders": {"a": TEXT}, "calculate_output": "2000 * a"},
            "a has the weight 2000, of at most 1000",
        ),
        ({"type": "multi", "graders": {"a": TEXT}}, "calculate_output is missing: write a text"),
        ({"operation": ["eq"]}, "operation is no text: write a text"),
        ({"reference": None}, "reference is missing: write a text"),
        ({"reference": True}, "reference is no text: write a text"),
        ({"reference": "." * 300}, "the reference is a pattern of 610 characters, of at most 512"),
    ],
)
def test_a_grader_without_the_same_reward_is_refused_with_its_part(
    read: Read, grader: dict[str, Any], reason: str
) -> None:
    (refused,) = graded(read, TEXT | grader).refused
    assert refused.key == "method.reinforcement.grader"
    assert reason in refused.reason


def reinforced(read: Read, **hyperparameters: Any) -> Any:
    block = {"grader": TEXT, "hyperparameters": hyperparameters}
    return read(GIVEN_ONE, method={"type": "reinforcement", "reinforcement": block})


@pytest.mark.parametrize(("batch", "answers"), [(16, 128), (4, 32), (1, 8)])
def test_a_batch_of_reinforcement_is_of_prompts_with_all_their_answers(read: Read, batch: int, answers: int) -> None:
    done = reinforced(read, batch_size=batch)
    assert done.manifest is not None
    assert (done.problems, done.not_carried) == ([], [])
    spec = done.manifest["spec"]
    assert spec["rlhf"]["numGenerations"] == 8
    hyper = spec["hyperparameters"]
    assert hyper["perDeviceTrainBatchSize"] * hyper["gradientAccumulationSteps"] == answers
    assert f"A step has {answers} answers: " in done.text


@pytest.mark.parametrize(
    ("batch", "reason"),
    [("many", "is not a number"), (1.5, "is not a whole number"), (0, "is not above 0"), (-2, "is not above 0")],
)
def test_a_batch_that_is_no_number_of_rows_is_named(read: Read, batch: Any, reason: str) -> None:
    done = read(GIVEN, method=method("supervised", batch_size=batch))
    assert done.manifest is not None
    assert "hyperparameters" not in done.manifest["spec"]
    assert [(one.key, one.reason) for one in done.not_carried] == [
        ("method.supervised.hyperparameters.batch_size", reason)
    ]


def test_the_method_wins_over_the_older_hyperparameters(read: Read) -> None:
    older = {"n_epochs": 9, "batch_size": 16, "learning_rate_multiplier": 2}
    done = read(GIVEN, hyperparameters=older, method=method("supervised", n_epochs=2, batch_size="auto"))
    assert done.manifest is not None
    assert done.manifest["spec"]["hyperparameters"] == {"numTrainEpochs": 2}
    assert [(one.key, one.reason) for one in done.not_carried if not one.changes_training] == [
        ("hyperparameters.n_epochs", "method.supervised.hyperparameters has it too, and counts"),
        ("hyperparameters.batch_size", "method.supervised.hyperparameters has it too, and counts"),
    ]
    assert [one.key for one in done.not_carried if one.changes_training] == ["hyperparameters.learning_rate_multiplier"]


def test_settings_of_a_method_that_are_not_carried_are_named(read: Read) -> None:
    block = {"grader": TEXT, "response_format": {"type": "json_schema"}, "gradr": 1}
    done = read(GIVEN_ONE, method={"type": "reinforcement", "reinforcement": block, "dpo": {"hyperparameters": {}}})
    assert [(one.key, one.changes_training) for one in done.not_carried] == [
        ("method.dpo", False),
        ("method.reinforcement.response_format", True),
        ("method.reinforcement.gradr", True),
    ]


@pytest.mark.parametrize("value", ["dpo", ["dpo"]])
def test_a_method_that_is_not_an_object_is_refused(read: Read, value: Any) -> None:
    assert [(one.key, one.reason) for one in read(GIVEN, method=value).refused] == [("method", "is not an object")]
