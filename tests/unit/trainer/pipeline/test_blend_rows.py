"""Several sources of training rows become one file of rows and tokens, with real files and a real tokenizer."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from finetune_api.handoff import Artifact, ExitCode
from finetune_trainer.data.checks.output import read_accepted
from finetune_trainer.errors import TrainerError
from finetune_trainer.pipeline.dataset import encode_rows
from finetune_trainer.pipeline.prepare_dataset import PreparedDataset, prepare_dataset
from finetune_trainer.storage.protocol import sha256_file
from finetune_trainer.tokenization.labeler import load_labeler
from finetune_trainer.tokenization.token_file import TokenOrigin, read_tokens

Row = dict[str, Any]
SECOND = "spec.dataset.train.sources[1]"


def alpaca(number: int) -> Row:
    return {"instruction": f"alpaca asks {number}", "output": "one plus " * (1 + number % 7)}


def openai(number: int) -> Row:
    asked = {"role": "user", "content": f"openai asks {number}"}
    return {"messages": [asked, {"role": "assistant", "content": "two " * (1 + number % 3)}]}


def sharegpt(number: int) -> Row:
    turns = [("human", f"sharegpt asks {number}"), ("gpt", f"{number} is what it is")]
    return {"conversations": [{"from": who, "value": what} for who, what in turns]}


def pair(number: int) -> Row:
    return {"prompt": f"what is {number}", "chosen": "one plus " * (1 + number % 9), "rejected": f"{number}"}


def upload(world: Any, name: str, row: Callable[[int], Row], count: int, start: int = 0) -> str:
    lines = (json.dumps(row(number)) for number in range(start, start + count))
    (world.bucket / f"{name}.jsonl").write_text("\n".join(lines))
    return f"s3://bucket/{name}.jsonl"


def weighted(world: Any, **sources: tuple[Callable[[int], Row], int, int]) -> list[Row]:
    """Upload rows by source, as (row, count, weight); no two sources have the same rows."""
    found, start = [], 0
    for name, (row, count, weight) in sources.items():
        found.append({"uri": upload(world, name, row, count, start), "weight": weight})
        start += count
    return found


def prepare(
    world: Any, sources: list[Row], objective: str = "Chat", train: Row | None = None, seed: int = 42, **dataset: Any
) -> PreparedDataset:
    blocks = {"train": {"sources": sources} | (train or {})} | dataset
    hyperparameters = {"maxLength": 128, "seed": seed}
    world.with_config({"objective": objective, "dataset": blocks, "hyperparameters": hyperparameters})
    labeler = load_labeler(world.bucket / "model", "the model")
    return prepare_dataset(
        world.config, world.storage, world.workspace, labeler, bound={}, on_bytes=lambda _: None, on_rows=lambda: None
    )


def refusal(world: Any, sources: list[Row], **options: Any) -> TrainerError:
    with pytest.raises(TrainerError) as error:
        prepare(world, sources, **options)
    return error.value


def summary(prepared: PreparedDataset) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((prepared.directory / Artifact.DATASET_SUMMARY).read_text())
    return found


def rows(prepared: PreparedDataset, name: Artifact = Artifact.TRAIN_ROWS) -> list[Row]:
    return [json.loads(line) for line in (prepared.directory / name).read_text().splitlines()]


def files(prepared: PreparedDataset, name: Artifact = Artifact.TRAIN_ROWS) -> Counter[str]:
    return Counter(row["_source"]["file"] for row in rows(prepared, name))


def trained_tokens(world: Any, prepared: PreparedDataset, objective: str = "Chat") -> Counter[str]:
    """Count the tokens with a loss in the file that training maps into memory, by the file of their row."""
    labeler = load_labeler(world.bucket / "model", "the model")
    samples = read_tokens(prepared.directory / Artifact.TRAIN_TOKENS, TokenOrigin.of(labeler, objective, 128))
    assert samples is not None
    found: Counter[str] = Counter()
    read = rows(prepared)
    for row, trained in zip(samples.numbers("row").tolist(), samples.numbers("trained").tolist(), strict=True):
        found[read[row]["_source"]["file"]] += trained
    return found


@pytest.mark.parametrize("strategy", [None, "FirstExhausted", "AllExhausted"])
def test_three_formats_train_in_their_proportions(world: Any, strategy: str | None) -> None:
    sources = weighted(world, a=(alpaca, 300, 5), b=(openai, 250, 3), c=(sharegpt, 200, 2))
    prepared = prepare(world, sources, train={"stoppingStrategy": strategy}, validationSplitPercent=10)
    found = trained_tokens(world, prepared)
    total = sum(found.values())
    for source in sources:
        assert found[source["uri"]] / total == pytest.approx(source["weight"] / 10, abs=0.005)
    blend = summary(prepared)["blend"]
    assert [one["trainedTokens"] for one in blend] == [found[one["uri"]] for one in blend]
    assert [one["trainRows"] for one in blend] == [files(prepared)[one["uri"]] for one in blend]
    assert [one["shareOfTrainedTokens"] for one in blend] == pytest.approx([0.5, 0.3, 0.2], abs=0.005)


def test_the_tokens_of_a_blend_are_those_of_its_rows_in_their_order(world: Any) -> None:
    sources = weighted(world, a=(alpaca, 90, 1), b=(openai, 200, 2))
    prepared = prepare(world, sources, train={"stoppingStrategy": "AllExhausted"}, validationSplitPercent=20)
    labeler = load_labeler(world.bucket / "model", "the model")
    origin = TokenOrigin.of(labeler, "Chat", 128)
    sides = {Artifact.TRAIN_ROWS: Artifact.TRAIN_TOKENS, Artifact.VALIDATION_ROWS: Artifact.VALIDATION_TOKENS}
    for name, tokens in sides.items():
        read = read_tokens(prepared.directory / tokens, origin)
        assert read is not None
        expected = encode_rows(read_accepted(prepared.directory / name), labeler, origin, lambda: None)
        assert list(read) == list(expected)
        assert list(read.numbers("row")) == list(range(len(rows(prepared, name))))
        if tokens is Artifact.TRAIN_TOKENS:
            assert list(prepared.train_lengths) == [sample.length for sample in read]


def test_objectives_with_a_loss_for_each_row_blend_by_rows(world: Any) -> None:
    sources = weighted(world, a=(pair, 100, 1), b=(pair, 500, 3))
    prepared = prepare(world, sources, "DPO")
    assert files(prepared) == {"s3://bucket/a.jsonl": 100, "s3://bucket/b.jsonl": 300}


def test_without_weights_all_rows_of_all_sources_are_trained_on_in_turns(world: Any) -> None:
    sources = [{"uri": upload(world, "a", alpaca, 30)}, {"uri": upload(world, "b", openai, 60)}]
    prepared = prepare(world, sources)
    assert files(prepared) == {"s3://bucket/a.jsonl": 30, "s3://bucket/b.jsonl": 60}
    first = Counter(row["_source"]["file"] for row in rows(prepared)[:9])
    assert first == {"s3://bucket/a.jsonl": 3, "s3://bucket/b.jsonl": 6}


def test_rows_of_a_smaller_source_are_repeated_until_all_are_exhausted(world: Any) -> None:
    sources = weighted(world, a=(pair, 400, 1), b=(pair, 40, 1))
    prepared = prepare(world, sources, "DPO", {"stoppingStrategy": "AllExhausted"}, validationSplitPercent=10)
    used = files(prepared)
    assert used["s3://bucket/a.jsonl"] == used["s3://bucket/b.jsonl"] > 300
    held_out = {row["prompt"][0]["content"] for row in rows(prepared, Artifact.VALIDATION_ROWS)}
    assert len(held_out) == prepared.status.validation_rows == 44
    assert not held_out & {row["prompt"][0]["content"] for row in rows(prepared)}
    assert prepared.status.train_rows == prepared.train_samples == sum(used.values())


def test_a_limited_source_is_read_no_further_or_chosen_from_as_a_whole(world: Any) -> None:
    uris = [upload(world, name, alpaca, 100, start) for name, start in (("a", 0), ("b", 100))]
    sources = [{"uri": uris[0], "maxSamples": 10}, {"uri": uris[1], "maxSamples": 10, "sample": "Random"}]
    prepared = prepare(world, sources)
    lines = {uri: [row["_source"]["line"] for row in rows(prepared) if row["_source"]["file"] == uri] for uri in uris}
    assert lines[uris[0]] == list(range(1, 11))
    assert len(lines[uris[1]]) == 10
    assert max(lines[uris[1]]) > 20
    assert lines[uris[1]] == sorted(lines[uris[1]])
    assert [one["rows"] for one in summary(prepared)["status"]["sources"]] == [10, 100]


def test_the_same_seed_gives_the_same_files_and_another_one_others(world: Any) -> None:
    sources = [
        {"uri": upload(world, "a", alpaca, 200), "weight": 1, "sample": "Random"},
        {"uri": upload(world, "b", openai, 200), "weight": 1, "maxSamples": 150, "sample": "Random"},
    ]
    digests = []
    for seed in (1, 1, 2):
        prepared = prepare(world, sources, seed=seed, validationSplitPercent=10)
        digests.append({file.path: file.sha256 for file in prepared.files})
        assert digests[-1][Artifact.TRAIN_ROWS] == sha256_file(prepared.directory / Artifact.TRAIN_ROWS)
    assert digests[0] == digests[1]
    assert digests[0][Artifact.TRAIN_ROWS] != digests[2][Artifact.TRAIN_ROWS]


def test_each_source_has_its_own_format_and_columns(world: Any) -> None:
    asked = upload(world, "a", lambda number: {"frage": f"what {number}", "antwort": "one"}, 20)
    told = upload(world, "b", lambda number: {"q": f"which {number}", "a": "two"}, 20)
    sources = [
        {"uri": asked, "columns": {"instruction": "frage", "output": "antwort"}, "format": "Alpaca"},
        {"uri": told, "columns": {"prompt": "q", "completion": "a"}, "format": "PromptCompletion"},
        {"uri": upload(world, "c", openai, 20)},
    ]
    prepared = prepare(world, sources)
    assert prepared.status.rows_by_format == {"Alpaca": 20, "PromptCompletion": 20, "OpenAI": 20}


def test_counts_and_rejects_are_reported_by_source_and_in_total(world: Any) -> None:
    good, bad = upload(world, "a", alpaca, 50), upload(world, "b", openai, 40)
    with (world.bucket / "b.jsonl").open("a") as file:
        file.write("\n{\n" + json.dumps(alpaca(3)) + "\n" + json.dumps({"instruction": "no answer", "output": ""}))
    prepared = prepare(world, [{"uri": good}, {"uri": bad}])
    assert prepared.status.sources is not None
    first, second = prepared.status.sources
    assert (first.rows, first.accepted_rows, first.rejected_rows, first.train_rows) == (50, 50, 0, 50)
    assert (second.uri, second.rows, second.accepted_rows, second.rejected_rows) == (bad, 43, 40, 3)
    assert second.rejected_rows_by_code == {"BAD_JSON": 1, "DUPLICATE": 1, "EMPTY_RESPONSE": 1}
    assert (prepared.status.rows, prepared.status.rejected_rows, prepared.status.train_rows) == (93, 3, 90)
    rejected = rows(prepared, Artifact.REJECTED)
    assert {row["file"] for row in rejected} == {bad}
    assert [one["uri"] for one in summary(prepared)["sources"]] == [good, bad]


@pytest.mark.parametrize("sample", ["First", "Random"])
def test_a_row_that_a_limit_leaves_out_is_not_repeated_by_a_later_source(world: Any, sample: str) -> None:
    limited = {"uri": upload(world, "a", alpaca, 400), "maxSamples": 10, "sample": sample}
    prepared = prepare(world, [limited, {"uri": upload(world, "b", alpaca, 400)}])
    assert prepared.status.rejected_rows_by_code == {"DUPLICATE": 10}
    assert prepared.status.train_rows == 400
    instructions = [row["messages"][0]["content"] for row in rows(prepared)]
    assert len(set(instructions)) == 400


def test_a_limited_source_repeats_neither_itself_nor_an_earlier_one(world: Any) -> None:
    first = {"uri": upload(world, "a", alpaca, 60)}
    lines = [json.dumps(alpaca(number)) for number in (*range(50, 90), *range(60, 90))]
    (world.bucket / "b.jsonl").write_text("\n".join(lines))
    prepared = prepare(world, [first, {"uri": "s3://bucket/b.jsonl", "maxSamples": 60, "sample": "Random"}])
    assert prepared.status.rejected_rows_by_code == {"DUPLICATE": 40}
    assert prepared.status.train_rows == 90


def test_what_is_held_out_is_not_in_any_source(world: Any) -> None:
    upload(world, "held", alpaca, 10)
    sources = [{"uri": upload(world, "a", alpaca, 40)}, {"uri": upload(world, "b", openai, 40)}]
    prepared = prepare(world, sources, validation={"uri": "s3://bucket/held.jsonl"})
    assert prepared.status.rejected_rows_by_code == {"EVAL_LEAK": 10}
    assert (prepared.status.train_rows, prepared.status.validation_rows) == (70, 10)


def test_a_single_source_has_no_counts_by_source(world: Any) -> None:
    world.with_config({})
    labeler = load_labeler(world.bucket / "model", "the model")
    prepared = prepare_dataset(
        world.config, world.storage, world.workspace, labeler, bound={}, on_bytes=lambda _: None, on_rows=lambda: None
    )
    assert prepared.status.sources is None
    assert "blend" not in summary(prepared)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"uri": "s3://bucket/none.jsonl"}, "correct spec.dataset.train.sources[1].uri, or upload the rows"),
        ({"uri": "s3://bucket/empty.jsonl"}, f"{SECOND}: s3://bucket/empty.jsonl: there are no rows"),
        ({"uri": "s3://bucket/again.jsonl"}, f"{SECOND}: s3://bucket/again.jsonl: none of the 5 rows"),
        (
            {"uri": "s3://bucket/a*.jsonl"},
            "spec.dataset.train.sources[1].uri and spec.dataset.train.sources[0].uri both read s3://bucket/a.jsonl",
        ),
        (
            {"uri": "s3://bucket/odd.jsonl"},
            "name yours in dataset.train.sources[1].columns, for example {answer: reply}",
        ),
        (
            {"uri": "s3://bucket/odd.jsonl", "columns": {"prompt": "no"}},
            "dataset.train.sources[1].columns names prompt as 'no', which no row has",
        ),
        (
            {"uri": "s3://bucket/odd.jsonl", "columns": {"ape": "no"}},
            "spec.dataset.train.sources[1].columns maps ape, which is in no format",
        ),
        (
            {"uri": "s3://bucket/again.jsonl", "sha256": "0" * 64},
            "which differs from spec.dataset.train.sources[1].sha256: the rows changed",
        ),
    ],
)  # fmt: skip
def test_a_source_that_brings_nothing_is_refused_by_its_path(world: Any, second: Row, message: str) -> None:
    first = upload(world, "a", alpaca, 20)
    upload(world, "again", alpaca, 5)
    upload(world, "odd", lambda number: {"prompt": f"{number}", "reply": "x"}, 5)
    (world.bucket / "empty.jsonl").write_text("\n")
    error = refusal(world, [{"uri": first}, second])
    assert error.code in {ExitCode.DATASET_UNUSABLE, ExitCode.INVALID_CONFIG}
    assert message in error.message
