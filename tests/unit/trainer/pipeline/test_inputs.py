import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import Artifact, ExitCode
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.pipeline.dataset import ENCODED_AT_ONCE, RowFile, Rows, encode_rows, fetch_rows
from finetune_trainer.pipeline.inputs import load_inputs, share_digests
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.sample_table import find_owners
from finetune_trainer.tokenization.token_file import TokenOrigin


def test_the_model_that_an_earlier_run_left_in_the_workspace_is_removed(world: Any) -> None:
    preflight(world.run)
    left_over = [world.workspace / "model" / "chat_template.jinja", world.workspace / "result" / "adapter.bin"]
    for path in left_over:
        path.parent.mkdir()
        path.write_text("{{ raise_exception('another model') }}")
    inputs = load_inputs(world.run)
    assert [path for path in left_over if path.exists()] == []
    assert (inputs.model / "model.safetensors").exists()
    assert len(inputs.train) == 80


def test_one_process_of_a_pod_digests_the_base_and_all_get_the_digests(world: Any) -> None:
    preflight(world.run)
    first, second = load_inputs(world.run), load_inputs(world.run, digests_models=False)
    assert second.model_files == {}
    sent: list[bytes] = []
    for one in (first, second):
        share_digests(one, lambda own: sent.append(own) or [own])
    assert share_digests(second, lambda _: sent * 2).base_sha256 == first.base_sha256

    for model in ("base model", "teacher"):
        changed = json.loads(sent[0])
        changed[model]["model.safetensors"] = "0" * 64
        found = [*sent, json.dumps(changed).encode(), sent[1]]
        with pytest.raises(TrainerError, match=rf"rank 2 loaded other files of the {model} .* model\.safetensors"):
            share_digests(first, lambda _, found=found: found)


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"initialAdapter": {"uri": "s3://bucket/other", "files": {"adapter_config.json": "1"}}}, []),
        (
            {"initialAdapter": {"uri": "s3://bucket/adapter", "files": {"adapter_config.json": "2"}}},
            ["initial adapter"],
        ),
        ({"rewardModel": {"s3://bucket/reward": {"model.safetensors": "2"}}}, ["reward model"]),
        ({"teacher": {"files": {}, "weights": {"model.safetensors": "2"}}}, ["teacher"]),
        ({"chatTemplateSHA256": "2"}, ["chat template"]),
        ({"files": [{"path": Artifact.ABILITY_ROWS, "sha256": "2"}]}, ["file of ability questions"]),
    ],
)
def test_every_input_that_preflight_checked_has_a_digest_of_what_it_is(
    tmp_path: Path, change: dict[str, Any], changed: list[str]
) -> None:
    summary = {
        "initialAdapter": {"uri": "s3://bucket/adapter", "files": {"adapter_config.json": "1"}},
        "rewardModel": {"s3://bucket/reward": {"model.safetensors": "1"}},
        "teacher": {"files": {}, "weights": {"model.safetensors": "1"}},
        "chatTemplateSHA256": "1",
        "files": [{"path": Artifact.ABILITY_ROWS, "sha256": "1"}, {"path": Artifact.TRAIN_ROWS, "sha256": "1"}],
    }
    rows = RowFile(tmp_path / "rows.jsonl", 0)
    before, after = (Rows(rows, None, one).input_digests for one in (summary, summary | change))
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == changed


def test_a_stop_ends_the_making_of_samples_after_some_rows(world: Any, model_folder: Any) -> None:
    preflight(world.run)
    rows = list(fetch_rows(world.config, world.storage, world.workspace, lambda _count: None).train)
    labeler = Labeler(model_folder)
    told: list[int] = []

    def on_rows() -> None:
        told.append(1)
        if len(told) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        encode_rows(rows * (5 * ENCODED_AT_ONCE // len(rows)), labeler, TokenOrigin.of(labeler, "Chat", 128), on_rows)
    assert len(told) == 3


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows in each call of the tokenizer."""
    calls: list[int] = []
    encode_batch = Labeler.encode_batch

    def count(self: Labeler, rows: Any, *arguments: Any) -> Any:
        calls.append(len(rows))
        return encode_batch(self, rows, *arguments)

    monkeypatch.setattr(Labeler, "encode_batch", count)
    return calls


def forget_tokens(world: Any) -> None:
    """Leave what a preflight without token files has left."""
    path = world.out / Artifact.DATASET_SUMMARY
    summary = json.loads(path.read_text())
    summary["files"] = [file for file in summary["files"] if not file["path"].endswith(".arrow")]
    path.write_text(json.dumps(summary))
    for name in ("train.arrow", "validation.arrow"):
        (world.out / "dataset" / name).unlink()


@pytest.mark.parametrize(
    ("objective", "row"),
    [
        ("Chat", {"instruction": "what is {}", "output": "one plus {}"}),
        ("DomainAdaptation", {"text": "what is one plus {} " * 20}),
        ("DPO", {"prompt": "what is {}", "chosen": "one plus {}", "rejected": "two plus {}"}),
        ("KTO", {"prompt": "what is {}", "completion": "one plus {}", "label": False}),
        ("RLHF", {"prompt": "what is {}"}),
    ],
)
def test_training_reads_the_tokens_that_preflight_made(
    world: Any, encoded: list[int], objective: str, row: dict[str, Any]
) -> None:
    rlhf = {"rlhf": {"rewards": [{"type": "Length", "targetTokens": 8}]}} if objective == "RLHF" else {}
    lines = [json.dumps(row).replace("{}", str(number)) for number in range(400)]
    (world.bucket / "rows.jsonl").write_text("\n".join(lines))
    world.with_config(
        {
            "objective": objective,
            "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}, "validationSplitPercent": 40},
            **rlhf,
        }
    )
    preflight(world.run)
    encoded.clear()
    read = load_inputs(world.run)
    assert encoded == []
    forget_tokens(world)
    made = load_inputs(world.run)
    assert sum(encoded) == 400
    assert list(read.train) == list(made.train)
    assert list(read.validation) == list(made.validation)
    assert [read.train[at] for at in (0, 100, -1)] == [list(read.train)[at] for at in (0, 100, -1)]


def test_of_many_held_out_rows_the_same_512_are_evaluated_with_and_without_token_files(world: Any) -> None:
    rows = ({"instruction": f"what is {number}", "output": "one"} for number in range(600))
    (world.bucket / "held.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = {"train": {"uri": "s3://bucket/rows.jsonl"}, "validation": {"uri": "s3://bucket/held.jsonl"}}
    world.with_config({"dataset": sources})
    preflight(world.run)
    read = list(load_inputs(world.run).validation)
    forget_tokens(world)
    assert len(read) == 512
    assert read == list(load_inputs(world.run).validation)


@pytest.mark.parametrize("count", [90, 900])
def test_held_out_rows_of_one_prompt_belong_together_with_and_without_token_files(world: Any, count: int) -> None:
    rows = ({"prompt": f"what is {at % 9}", "chosen": f"one {at}", "rejected": "two"} for at in range(count))
    (world.bucket / "held.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train = {"prompt": "what is ten", "chosen": "one", "rejected": "two"}
    (world.bucket / "rows.jsonl").write_text("\n".join(json.dumps(train | {"chosen": f"{at}"}) for at in range(50)))
    sources = {"train": {"uri": "s3://bucket/rows.jsonl"}, "validation": {"uri": "s3://bucket/held.jsonl"}}
    world.with_config({"objective": "DPO", "dataset": sources})
    preflight(world.run)
    read = load_inputs(world.run).validation
    forget_tokens(world)
    made = load_inputs(world.run).validation
    assert find_owners(read) == find_owners(made)
    prompts = [tuple(sample.prompt_ids) for sample in read]  # type: ignore[union-attr]
    assert len(set(prompts)) == 9
    numbers: dict[tuple[int, ...], int] = {}
    assert find_owners(read) == tuple((1, numbers.setdefault(prompt, len(numbers))) for prompt in prompts)


def test_tokens_that_changed_after_preflight_are_refused(world: Any) -> None:
    preflight(world.run)
    path = world.out / "dataset" / "train.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(TrainerError, match=r"dataset/train\.arrow was changed after preflight") as error:
        load_inputs(world.run)
    assert error.value.code is ExitCode.DATASET_UNUSABLE


def change_template(world: Any) -> None:
    config = world.bucket / "model" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("message['role']", "message['role'] | upper"))


def test_a_template_that_was_changed_after_preflight_is_refused(world: Any) -> None:
    preflight(world.run)
    change_template(world)
    with pytest.raises(TrainerError, match=r"tokenizer_config\.json was changed after preflight"):
        load_inputs(world.run)


def test_tokens_of_another_tokenizer_are_not_trained_on(
    world: Any, encoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """The summary of an older version has no digests of the model's files."""
    preflight(world.run)
    before = load_inputs(world.run).train[0]
    encoded.clear()
    (summary,) = world.bucket.rglob("summary.json")
    content = json.loads(summary.read_text(encoding="utf-8"))
    del content["model"]["files"], content["model"]["weights"]
    summary.write_text(json.dumps(content), encoding="utf-8")
    change_template(world)
    after = load_inputs(world.run).train[0]
    assert sum(encoded) == 100
    assert after != before
    assert "the tokenizer or its template changed after preflight" in caplog.text
