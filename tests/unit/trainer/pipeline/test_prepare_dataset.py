"""From files of every kind of row to the canonical rows that training reads, with a real tokenizer and real files."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.handoff import Artifact, ExitCode
from finetune_trainer.data.checks.output import read_accepted
from finetune_trainer.data.rows import ChatRow, PreferenceRow, PromptRow, TextRow, UnpairedRow
from finetune_trainer.errors import TrainerError
from finetune_trainer.pipeline.dataset import encode_rows
from finetune_trainer.pipeline.prepare_dataset import PreparedDataset, prepare_dataset
from finetune_trainer.tokenization.labeler import load_labeler
from finetune_trainer.tokenization.token_file import TokenOrigin

RLHF = {"rlhf": {"rewards": [{"type": "Length", "targetTokens": 8}]}}


def pairs(count: int = 100) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"prompt": f"what is {number}", "chosen": f"one plus {number}", "rejected": f"two plus {number}"}


def labelled(count: int = 100) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"prompt": f"what is {number}", "completion": f"one plus {number}", "label": number % 2 == 0}


def prompts(count: int = 100) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"prompt": f"what is {number}"}


def texts(count: int = 100) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"text": f"what is one plus {number}"}


def prepare(world: Any, rows: Any, objective: str, dataset: dict[str, Any] | None = None) -> PreparedDataset:
    (world.bucket / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = {
        "objective": objective,
        "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}, "validationSplitPercent": 20} | (dataset or {}),
        **(RLHF if objective == "RLHF" else {}),
    }
    world.with_config(spec)
    labeler = load_labeler(world.bucket / "model", "the model")
    return prepare_dataset(
        world.config, world.storage, world.workspace, labeler, bound={}, on_bytes=lambda _: None, on_rows=lambda: None
    )


def failure(world: Any, rows: Any, objective: str, dataset: dict[str, Any] | None = None) -> TrainerError:
    with pytest.raises(TrainerError) as error:
        prepare(world, rows, objective, dataset)
    return error.value


@pytest.mark.parametrize(
    ("rows", "objective", "kind", "per_row"),
    [
        (pairs, "DPO", PreferenceRow, 1),
        (pairs, "RewardModel", PreferenceRow, 1),
        (pairs, "KTO", UnpairedRow, 2),
        (labelled, "KTO", UnpairedRow, 1),
        (pairs, "Chat", ChatRow, 1),
        (pairs, "RLHF", PromptRow, 1),
        (prompts, "RLHF", PromptRow, 1),
        (texts, "DomainAdaptation", TextRow, 1),
    ],
)
def test_rows_of_every_objective_are_split_and_written_as_training_reads_them(
    world: Any, rows: Any, objective: str, kind: type, per_row: int
) -> None:
    prepared = prepare(world, rows(), objective)
    train = list(read_accepted(prepared.directory / Artifact.TRAIN_ROWS))
    held_out = list(read_accepted(prepared.directory / Artifact.VALIDATION_ROWS))
    assert {type(row) for row in (*train, *held_out)} == {kind}
    assert len(train) + len(held_out) == 100 * per_row
    assert len(held_out) == 20 * per_row
    assert (prepared.status.train_rows, prepared.status.validation_rows) == (len(train), len(held_out))
    assert (prepared.train_samples, prepared.validation_samples) == (len(train), len(held_out))
    labeler = load_labeler(world.bucket / "model", "the model")
    samples = encode_rows(train, labeler, TokenOrigin.of(labeler, objective, 128), lambda: None)
    assert len(samples) == len(train)
    assert prepared.status.p99_length_tokens == max(sample.length for sample in samples)


def test_both_answers_of_a_pair_are_held_out_together(world: Any) -> None:
    prepared = prepare(world, pairs(), "KTO")
    sides = [
        {row.prompt[0]["content"] for row in read_accepted(prepared.directory / name) if isinstance(row, UnpairedRow)}
        for name in (Artifact.TRAIN_ROWS, Artifact.VALIDATION_ROWS)
    ]
    assert not sides[0] & sides[1]
    assert prepared.status.repaired_rows_by_code == {"PAIR_SPLIT": 200}


@pytest.mark.parametrize(("rows", "objective"), [(pairs, "DPO"), (texts, "DomainAdaptation"), (prompts, "RLHF")])
def test_what_the_validation_file_holds_is_not_trained_on(world: Any, rows: Any, objective: str) -> None:
    (world.bucket / "held.jsonl").write_text("\n".join(map(json.dumps, rows(30))))
    dataset = {"validation": {"uri": "s3://bucket/held.jsonl"}, "validationSplitPercent": None}
    prepared = prepare(world, rows(), objective, dataset)
    assert (prepared.status.train_rows, prepared.status.validation_rows) == (70, 30)
    assert prepared.status.rejected_rows_by_code == {"EVAL_LEAK": 30}


def test_rows_over_the_length_are_skipped(world: Any) -> None:
    """From the held-out rows too; without `Skip` they are truncated."""
    rows = [*pairs(), {"prompt": "what is one", "chosen": "one plus " * 200, "rejected": "two"}]
    truncated = prepare(world, rows, "DPO").status
    assert (truncated.train_rows, truncated.validation_rows, truncated.truncated_rows) == (81, 20, 1)
    skipped = prepare(world, rows, "DPO", {"longRows": "Skip"}).status
    assert (skipped.train_rows, skipped.validation_rows, skipped.truncated_rows) == (80, 20, 0)
    assert skipped.rejected_rows_by_code == {"OVER_MAX_LENGTH": 1}
    error = failure(world, rows[-1:], "DPO", {"longRows": "Skip"})
    assert "each of the 1 rows has more tokens than hyperparameters.maxLength: raise it" in error.message


def test_codes_and_formats_are_counted(world: Any) -> None:
    rows = [
        *pairs(60),
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"chosen": "a", "rejected": "b"},
        {"text": "t"},
        {"prompt": "q", "completion": "a"},
        next(pairs()),
    ]
    status = prepare(world, rows, "DPO").status
    assert (status.rows, status.accepted_rows, status.rejected_rows) == (66, 61, 5)
    assert status.rejected_rows_by_code == {
        "SAME_PAIR": 1,
        "NO_SHARED_PROMPT": 1,
        "NOT_FOR_OBJECTIVE": 2,
        "DUPLICATE": 1,
    }
    assert status.rows_by_format == {"Preference": 61}


@pytest.mark.parametrize(
    ("rows", "objective", "said"),
    [
        (texts, "Chat", ["is a text", "choose the objective DomainAdaptation"]),
        (prompts, "DPO", ["a prompt without an answer", "preference pairs", "choose the objective RLHF"]),
        (labelled, "DPO", ["an answer with a label", "choose the objective KTO"]),
        (pairs, "DomainAdaptation", ["is a preference pair", "trains on texts", "check-data --to text"]),
    ],
)
def test_a_file_for_another_objective_fails_with_what_it_holds_and_the_fix(
    world: Any, rows: Any, objective: str, said: list[str]
) -> None:
    error = failure(world, rows(), objective)
    assert error.code is ExitCode.DATASET_UNUSABLE
    assert "none of the 100 rows fits the objective" in error.message
    assert all(words in error.message for words in said), error.message
    assert error.message.count("choose the objective") == 1
    assert error.dataset is not None
    assert error.dataset.rejected_rows_by_code == {"NOT_FOR_OBJECTIVE": 100}


def test_rows_that_half_suit_the_objective_fail_with_their_number(world: Any) -> None:
    error = failure(world, [*pairs(50), *texts(50)], "DPO")
    assert "50 of 100 rows are malformed (50.0 %, 50 of them do not fit the objective" in error.message


def test_rows_of_one_cause_are_named_in_one_sentence(world: Any) -> None:
    error = failure(world, [{"question": f"q{number}", "reply": "a"} for number in range(50)], "Chat")
    assert error.message.count("the row has a prompt but no answer") == 1
    assert "First: lines 1, 2, 3, 4, 5: NO_ASSISTANT: the row has a prompt but no answer" in error.message
    assert "name yours in dataset.columns, for example {answer: reply}" in error.message


def test_the_first_of_each_cause_is_named(world: Any) -> None:
    rows = [{"question": f"q{number}"} for number in range(20)] + [{"a": "b"}, {"question": "", "answer": "a"}]
    error = failure(world, rows, "Chat")
    assert "lines 1, 2, 3, 4, 5: NO_ASSISTANT: " in error.message
    assert "line 21: UNKNOWN_FORMAT: " in error.message
    assert "line 22: EMPTY_PROMPT: " in error.message


def test_a_mapped_column_that_no_row_has_fails_with_the_columns_seen(world: Any) -> None:
    rows = [{"question": f"q{number}", "reply": "a"} for number in range(50)]
    columns = {"prompt": "question", "completion": "answer"}
    error = failure(world, rows, "Chat", {"columns": columns})
    assert error.code is ExitCode.DATASET_UNUSABLE
    assert "completion as 'answer', which no row has; columns found: question, reply" in error.message
    assert "prompt as" not in error.message


def test_a_mapped_column_is_missed_even_where_rows_fit_without_it(world: Any) -> None:
    error = failure(world, pairs(), "DPO", {"columns": {"system": "persona"}})
    assert "system as 'persona', which no row has" in error.message


def test_mapped_columns_of_a_pair_are_read(world: Any) -> None:
    rows = [{"q": f"q{number}", "win": "a", "lose": "b"} for number in range(50)]
    prepared = prepare(world, rows, "DPO", {"columns": {"prompt": "q", "chosen": "win", "rejected": "lose"}})
    assert prepared.status.accepted_rows == 50


def test_mapped_names_within_turns_are_read(world: Any) -> None:
    rows = [
        {"dialog": [{"speaker_kind": "user", "utterance": f"q{number}"}, {"speaker_kind": "bot", "utterance": "a"}]}
        for number in range(50)
    ]
    columns = {"messages": "dialog", "role": "speaker_kind", "content": "utterance"}
    prepared = prepare(world, rows, "Chat", {"columns": columns})
    assert prepared.status.accepted_rows == 50
    error = failure(world, rows, "Chat", {"columns": columns | {"role": "who"}})
    assert "role as 'who', which no row has" in error.message


def test_columns_that_nothing_reads_are_one_warning(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"problem": f"p{number}", "solution": "s", "answer": "9"} for number in range(50)]
    (world.bucket / "held.jsonl").write_text(
        "\n".join(map(json.dumps, [row | {"problem": "held"} for row in rows[:1]]))
    )
    validation = {"validation": {"uri": "s3://bucket/held.jsonl"}, "validationSplitPercent": None}
    prepared = prepare(world, rows, "Chat", validation)
    assert [record.getMessage() for record in caplog.records if "not used" in record.getMessage()] == [
        "columns not used: solution (100 %): name them in dataset.columns if they belong to the training"
    ]
    summary = json.loads((prepared.directory / Artifact.DATASET_SUMMARY).read_text())
    assert summary["train"]["unusedColumns"] == {"solution": 50}


def test_the_warning_names_the_source_of_columns_that_nothing_reads(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (world.bucket / "other.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"other{number}", "completion": "a", "why": "w"}) for number in range(50))
    )
    sources = [{"uri": "s3://bucket/rows.jsonl"}, {"uri": "s3://bucket/other.jsonl"}]
    rows = [{"question": f"q{number}", "answer": "a"} for number in range(50)]
    prepare(world, rows, "Chat", {"train": {"sources": sources}})
    assert [record.getMessage() for record in caplog.records if "not used" in record.getMessage()] == [
        "columns not used: why (100 %) of dataset.train.sources[1]: name them in columns of the source if they "
        "belong to the training"
    ]


def test_a_mapping_to_a_name_of_no_format_is_an_invalid_spec(world: Any) -> None:
    error = failure(world, pairs(), "DPO", {"columns": {"promt": "prompt"}})
    assert error.code is ExitCode.INVALID_CONFIG
    assert "promt" in error.message
    assert "prompt" in error.message


def test_a_given_format_decides_what_the_rows_are(world: Any) -> None:
    rows = [{"instruction": f"q{number}", "output": "a", "text": f"### q{number} a"} for number in range(50)]
    prepared = prepare(world, rows, "DomainAdaptation", {"format": "Text"})
    assert prepared.status.rows_by_format == {"Text": 50}


@pytest.mark.parametrize(
    ("rows", "objective", "accepted"),
    [
        (pairs, "DPO", 30),
        (pairs, "RewardModel", 30),
        (pairs, "KTO", 60),
        (pairs, "Chat", 30),
        (pairs, "Instruction", 30),
        (prompts, "RLHF", 30),
        (texts, "DomainAdaptation", 30),
    ],
)
def test_the_summary_shows_for_every_objective_what_became_of_each_source_by_code(
    world: Any, rows: Any, objective: str, accepted: int
) -> None:
    (world.bucket / "held").mkdir()
    for name in ("a", "b"):
        (world.bucket / "held" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, [*rows(30), {"title": "none"}])))
    dataset = {"validation": {"uri": "s3://bucket/held/"}, "validationSplitPercent": None}
    dataset["maxRejectedPercent"] = 100
    prepared = prepare(world, rows(40), objective, dataset)
    summary = json.loads((prepared.directory / Artifact.DATASET_SUMMARY).read_text())
    first, second = summary["validation"]["files"]
    assert first == {
        "file": "s3://bucket/held/a.jsonl",
        "rows": accepted + 1,
        "acceptedRows": accepted,
        "rejectedRowsByCode": {"UNKNOWN_FORMAT": 1},
    }
    assert second["rejectedRowsByCode"] == {"DUPLICATE": accepted, "UNKNOWN_FORMAT": 1}
    (train,) = summary["train"]["files"]
    assert train["rejectedRowsByCode"] == {"EVAL_LEAK": accepted}
    assert train["acceptedRows"] == prepared.status.train_rows == accepted // 3
    assert prepared.status.rows_by_format == summary_formats(summary)


def summary_formats(summary: dict[str, Any]) -> dict[str, int]:
    (name,) = summary["train"]["rowsByFormat"]
    return {name: summary["train"]["rowsByFormat"][name] + summary["validation"]["rowsByFormat"][name]}
