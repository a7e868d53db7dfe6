import json
import threading
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_api.handoff import Artifact, ExitCode, Outcome, Report
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.storage.protocol import sha256_file


def check(world: Any) -> Report:
    return preflight(world.run)


def failure(world: Any) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        check(world)
    return caught.value


def test_a_good_job_is_validated_with_counts_and_resolved_settings(world: Any) -> None:
    report = check(world)
    assert report.outcome is Outcome.VALIDATED
    assert report.dataset is not None
    assert report.resolved is not None
    assert (report.dataset.rows, report.dataset.accepted_rows, report.dataset.rejected_rows) == (110, 100, 10)
    assert report.dataset.rejected_rows_by_code == {
        "BAD_JSON": 4,
        "NOT_OBJECT": 2,
        "UNKNOWN_FORMAT": 2,
        "EMPTY_RESPONSE": 2,
    }
    assert (report.dataset.train_rows, report.dataset.validation_rows) == (80, 20)
    assert (report.resolved.method, report.resolved.total_steps) == ("QLoRA", 15)
    assert "22 weights" in report.message


def test_the_canonical_rows_lie_under_the_output_with_their_digests(world: Any) -> None:
    report = check(world)
    summary = json.loads((world.out / Artifact.DATASET_SUMMARY).read_text())
    assert [file["path"] for file in summary["files"]] == [
        "dataset/train.arrow",
        "dataset/train.jsonl",
        "dataset/validation.arrow",
        "dataset/validation.jsonl",
        "rejected_rows.jsonl",
    ]
    for file in summary["files"]:
        assert sha256_file(world.out / file["path"]) == file["sha256"]
    assert report.lineage is not None
    assert report.lineage.dataset_sha256 == summary["files"][1]["sha256"]
    assert len((world.out / Artifact.REJECTED).read_text().splitlines()) == 10
    assert summary["sources"][0]["uri"] == "s3://bucket/rows.jsonl"


def test_no_prompt_lands_on_both_sides(world: Any) -> None:
    check(world)

    def prompts(name: str) -> set[str]:
        lines = (world.out / name).read_text().splitlines()
        return {json.loads(line)["messages"][0]["content"] for line in lines}

    train, validation = prompts(Artifact.TRAIN_ROWS), prompts(Artifact.VALIDATION_ROWS)
    assert len(train) == 80
    assert not train & validation


def test_the_prefix_is_claimed_in_the_name_of_the_job(world: Any) -> None:
    check(world)
    owner = json.loads((world.out / Artifact.OWNER).read_text())
    assert (owner["namespace"], owner["name"], owner["uid"]) == ("team", "job", "uid-1")


def give_context(world: Any, **config: Any) -> None:
    """Make the model one with these positions."""
    (world.bucket / "model" / "config.json").write_text(json.dumps(config))


def test_a_row_beyond_a_table_of_positions_is_refused_with_the_length_to_set(world: Any) -> None:
    give_context(world, architectures=["GPT2LMHeadModel"], model_type="gpt2", n_positions=28)
    found = failure(world)
    assert found.code is ExitCode.INVALID_CONFIG
    assert "spec.hyperparameters.maxLength is 128 and the longest sample has " in found.message
    assert "the model has positions for 28: set hyperparameters.maxLength to 28 or less" in found.message
    assert check(world.with_config({"hyperparameters": {"maxLength": 28}})).outcome is Outcome.VALIDATED


def test_a_length_that_no_row_reaches_may_be_beyond_the_table(world: Any) -> None:
    give_context(world, architectures=["GPT2LMHeadModel"], model_type="gpt2", n_positions=127)
    assert check(world).outcome is Outcome.VALIDATED


@pytest.mark.parametrize(
    ("positions", "is_told"),
    [
        ({"max_position_embeddings": 28}, True),
        ({"max_position_embeddings": 127}, False),
        (
            {
                "max_position_embeddings": 28,
                "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 28, "factor": 4.0},
            },
            False,
        ),
    ],
)
def test_a_row_beyond_computed_positions_is_trained_with_a_warning(
    world: Any, caplog: pytest.LogCaptureFixture, positions: dict[str, Any], *, is_told: bool
) -> None:
    give_context(world, architectures=["LlamaForCausalLM"], model_type="llama", **positions)
    assert check(world).outcome is Outcome.VALIDATED
    assert ("more than the model's context of 28" in caplog.text) is is_told


@pytest.mark.parametrize(("rows", "shown"), [(0, ""), (25, "25 of 100 rows (25.0 %)")])
def test_reasoning_that_the_template_omits_is_a_warning_with_the_share_of_rows_and_the_field(
    world: Any, caplog: pytest.LogCaptureFixture, rows: int, shown: str
) -> None:
    asked = ({"role": "user", "content": f"what is {one} plus one"} for one in range(100))
    answers = (
        {"role": "assistant", "content": str(one), **({"reasoning_content": "one more"} if one < rows else {})}
        for one in range(100)
    )
    lines = [json.dumps({"messages": pair}) for pair in zip(asked, answers, strict=True)]
    (world.bucket / "rows.jsonl").write_text("\n".join(lines))
    assert check(world).outcome is Outcome.VALIDATED
    expected = f"the chat template omits the reasoning of answers in {shown}, which is not trained on: "
    assert (expected in caplog.text) is bool(shown)
    assert ("set spec.model.chatTemplate to one that writes it" in caplog.text) is bool(shown)


def give_system_text(world: Any, rows: int) -> None:
    """Give the first of 100 rows one and the same system text."""
    lines = [
        {
            "instruction": f"what is {one} plus one",
            "output": str(one),
            **({"system": "Count\x1b!"} if one < rows else {}),
        }
        for one in range(100)
    ]
    (world.bucket / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))


ASKED = [{"prompt": "what is one"}, {"prompt": "what is two", "system": "Count!"}]


@pytest.mark.parametrize(
    ("rows", "prompts", "is_named"), [(89, ASKED, False), (90, ASKED, True), (90, ASKED[1:], False)]
)
def test_questions_without_the_system_text_of_the_rows_are_a_warning(
    world: Any, caplog: pytest.LogCaptureFixture, rows: int, prompts: list[Any], *, is_named: bool
) -> None:
    give_system_text(world, rows)
    assert check(world.with_config({"evaluation": {"prompts": prompts}})).outcome is Outcome.VALIDATED
    expected = (
        '90 % of the training rows have the system text "Count\\u001b!", and evaluation.prompts[0] has none: set '
        "system there, or the report and the gate ask without it"
    )
    assert (expected in caplog.text) is is_named


def test_rows_with_system_texts_of_their_own_need_none_in_the_questions(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [{"instruction": f"what is {one}", "output": "a", "system": f"Count {one}"} for one in range(100)]
    (world.bucket / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert check(world.with_config({"evaluation": {"prompts": ASKED}})).outcome is Outcome.VALIDATED
    assert "system text" not in caplog.text


def test_a_second_preflight_of_the_same_job_gives_the_same(world: Any) -> None:
    first = check(world)
    again = check(world.with_config(uid="uid-2"))
    assert again.outcome is Outcome.VALIDATED
    assert again.lineage == first.lineage


def test_a_workspace_that_is_used_again_gives_the_same_summary(world: Any) -> None:
    check(world)
    first = json.loads((world.out / Artifact.DATASET_SUMMARY).read_text())
    check(world)
    assert json.loads((world.out / Artifact.DATASET_SUMMARY).read_text()) == first


def test_the_files_of_the_model_that_was_there_before_are_not_used(world: Any) -> None:
    (world.workspace / "tokenizer").mkdir()
    (world.workspace / "tokenizer" / "chat_template.jinja").write_text("{{ raise_exception('another model') }}")
    assert check(world).outcome is Outcome.VALIDATED


def test_a_prefix_of_another_job_is_a_conflict_and_stays_as_it_is(world: Any) -> None:
    check(world)
    before = {path: path.read_bytes() for path in world.out.rglob("*") if path.is_file()}
    error = failure(world.with_config(name="other"))
    assert error.code is ExitCode.OUTPUT_CONFLICT
    assert "team/job" in error.message
    assert {path: path.read_bytes() for path in world.out.rglob("*") if path.is_file()} == before


def test_the_same_name_with_another_spec_is_a_conflict(world: Any) -> None:
    check(world)
    error = failure(world.with_config({"hyperparameters": {"maxSteps": 7}}))
    assert error.code is ExitCode.OUTPUT_CONFLICT
    assert "another spec" in error.message


def test_a_folder_with_other_files_and_no_claim_is_a_conflict(world: Any) -> None:
    world.out.mkdir()
    (world.out / "thesis.txt").write_text("mine")
    error = failure(world)
    assert error.code is ExitCode.OUTPUT_CONFLICT
    assert "thesis.txt" in error.message
    assert [path.name for path in world.out.iterdir()] == ["thesis.txt"]


def test_more_malformed_rows_than_allowed_fail_with_counts_and_first_lines(world: Any) -> None:
    world.with_config({"dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}, "maxRejectedPercent": 9}})
    error = failure(world)
    assert error.code is ExitCode.DATASET_UNUSABLE
    assert "10 of 110 rows are malformed (9.1 %" in error.message
    assert "BAD_JSON 4" in error.message
    assert "lines 101, 106: BAD_JSON" in error.message


def test_a_refused_dataset_leaves_its_rejected_rows_and_nothing_else(world: Any) -> None:
    (world.bucket / "rows.jsonl").write_text("lorem\nipsum\n")
    error = failure(world)
    assert error.code is ExitCode.DATASET_UNUSABLE
    assert "none of the 2 rows can be used (BAD_JSON 2)" in error.message
    (kept,) = [path for path in world.out.rglob("*") if path.is_file()]
    assert kept.relative_to(world.out).as_posix() == "refused/uid-1/rejected_rows.jsonl"
    assert error.message.endswith("Every rejected row: s3://bucket/out/refused/uid-1/rejected_rows.jsonl")
    assert [json.loads(line)["line"] for line in kept.read_text().splitlines()] == [1, 2]


def test_the_corrected_job_takes_the_prefix_of_the_refused_one(world: Any) -> None:
    good = (world.bucket / "rows.jsonl").read_text()
    (world.bucket / "rows.jsonl").write_text("lorem\nipsum\n")
    failure(world)
    (world.bucket / "rows.jsonl").write_text(good)
    assert check(world.with_config(uid="uid-2", name="corrected")).outcome is Outcome.VALIDATED
    assert (world.out / "refused" / "uid-1" / Artifact.REJECTED).is_file()


@pytest.mark.parametrize(
    "evaluation",
    [{"gate": {"mustImprove": True}}, {"gate": {"minCorrect": 50}, "answers": {"match": "Exact"}}],
    ids=["mustImprove", "minCorrect"],
)
def test_a_gate_on_a_base_that_does_not_fit_in_16_bits_is_refused_before_a_gpu_is_held(
    world: Any, evaluation: dict[str, Any]
) -> None:
    tuning = {"method": "QLoRA", "vramBudget": "40"}  # the model has 22 weights
    error = failure(world.with_config({"evaluation": evaluation, "tuning": tuning}))
    assert error.code is ExitCode.INVALID_CONFIG
    assert "judges the adapter on the base in 16 bits, as it is served" in error.message
    assert not world.out.exists()


FEW_ROWS = [f"what is {number}" for number in range(39)]
TOO_FEW = "39 rows are too few to hold any out; at least 40 are needed"


def give_prompts(world: Any, prompts: list[str]) -> None:
    lines = [{"instruction": prompt, "output": f"answer {at}"} for at, prompt in enumerate(prompts)]
    (world.bucket / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"answers": {"match": "Exact"}, "gate": {"minCorrect": 90}}, "evaluation.answers"),
        ({"gate": {"mustImprove": True}}, "evaluation.gate"),
    ],
    ids=["answers", "gate"],
)
@pytest.mark.parametrize(
    ("prompts", "why"),
    [
        (FEW_ROWS, TOO_FEW),
        (["what is one"] * 60, "the rows have too few different prompts to hold out 20 rows; there is no validation"),
    ],
    ids=["few-rows", "one-prompt"],
)
def test_what_needs_held_out_rows_is_refused_if_the_rows_are_too_few_to_hold_any_out(
    world: Any, asked: dict[str, Any], name: str, prompts: list[str], why: str
) -> None:
    give_prompts(world, prompts)
    error = failure(world.with_config({"evaluation": asked}))
    assert error.code is ExitCode.DATASET_UNUSABLE
    assert error.message.startswith(f"{name} needs held-out rows: {why}")
    assert error.message.endswith(f": add rows with other prompts, or name dataset.validation, or remove {name}")


def test_early_stopping_without_held_out_rows_is_a_warning(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    give_prompts(world, FEW_ROWS)
    assert check(world.with_config({"earlyStopping": {"patience": 1}})).outcome is Outcome.VALIDATED
    assert f"earlyStopping has no effect without held-out rows: {TOO_FEW}: add rows" in caplog.text


@pytest.mark.parametrize(("early", "is_named"), [({"patience": 1}, False), ({"patience": 2}, True)])
def test_patience_for_which_the_training_is_too_short_is_a_warning(
    world: Any, caplog: pytest.LogCaptureFixture, early: dict[str, Any], *, is_named: bool
) -> None:
    assert check(world.with_config({"evaluation": {"steps": 5}, "earlyStopping": early})).outcome is Outcome.VALIDATED
    expected = (
        "earlyStopping cannot stop this training before its last step: it needs 3 evaluations, and there are 3, every "
        "5 of 15 steps: lower evaluation.steps or earlyStopping.patience"
    )
    assert (expected in caplog.text) is is_named


def give_layers(world: Any) -> None:
    """Make the model a Llama of four wide layers and few words, whose size is that of its layers."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "vocab_size": 300}
    give_context(
        world,
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=256,
        **sizes,
    )
    shapes = {f"self_attn.{one}_proj": (512, 512) for one in "qkvo"} | {"mlp.down_proj": (512, 1536)}
    shapes |= {f"mlp.{one}_proj": (1536, 512) for one in ("gate", "up")}
    tensors = {f"model.layers.{layer}.{name}.weight": size for layer in range(4) for name, size in shapes.items()}
    tensors |= {"model.embed_tokens.weight": (300, 512), "lm_head.weight": (300, 512)}
    whole = {name: np.zeros(size, dtype=np.float16) for name, size in tensors.items()}
    save_file(whole, world.bucket / "model" / "model.safetensors")


def test_a_gate_on_a_base_that_is_shared_out_in_4_bits_needs_gpus_that_share_it_in_16_bits(world: Any) -> None:
    give_layers(world)
    tuning: dict[str, Any] = {"method": "QLoRA", "lora": {"shardBase": True, "rank": 1}}
    blocks = {"resources": {"gpusPerNode": 2}, "hyperparameters": {"maxLength": 128, "gradientCheckpointing": True}}
    resolved = check(world.with_config(blocks | {"tuning": tuning})).resolved
    assert resolved
    blocks |= {"evaluation": {"gate": {"mustImprove": True}}, "output": {"uri": "s3://bucket/gated"}}
    tight = tuning | {"vramBudget": str(resolved.estimated_gpu_memory_bytes)}
    error = failure(world.with_config(blocks | {"tuning": tight}))
    assert error.code is ExitCode.INVALID_CONFIG
    assert "as it is served, which needs 1.5 GiB on each GPU, and tuning.vramBudget is 1.5 GiB" in error.message
    assert "use larger GPUs, or more of them, or remove mustImprove" in error.message
    enough = tuning | {"vramBudget": "2Gi"}
    assert check(world.with_config(blocks | {"tuning": enough})).outcome is Outcome.VALIDATED


def test_an_empty_file_is_unusable(world: Any) -> None:
    (world.bucket / "rows.jsonl").write_text("")
    error = failure(world)
    assert error.code is ExitCode.DATASET_UNUSABLE
    assert "there are no rows" in error.message


def test_a_damaged_gzip_is_unusable(world: Any) -> None:
    (world.bucket / "rows.jsonl.gz").write_bytes(b"\x1f\x8b\x08 broken")
    error = failure(world.with_config({"dataset": {"train": {"uri": "s3://bucket/rows.jsonl.gz"}}}))
    assert error.code is ExitCode.DATASET_UNUSABLE
    assert "s3://bucket/rows.jsonl.gz" in error.message


def test_missing_rows_name_the_field_to_correct(world: Any) -> None:
    error = failure(world.with_config({"dataset": {"train": {"uri": "s3://bucket/gone.jsonl"}}}))
    assert error.code is ExitCode.DATASET_UNUSABLE
    assert "spec.dataset.train.uri" in error.message


def test_rows_with_another_digest_than_pinned_are_refused(world: Any) -> None:
    error = failure(world.with_config({"dataset": {"train": {"uri": "s3://bucket/rows.jsonl", "sha256": "0" * 64}}}))
    assert error.code is ExitCode.DATASET_UNUSABLE
    assert sha256_file(world.bucket / "rows.jsonl") in error.message


def test_rows_with_the_pinned_digest_pass(world: Any) -> None:
    digest = sha256_file(world.bucket / "rows.jsonl")
    world.with_config({"dataset": {"train": {"uri": "s3://bucket/rows.jsonl", "sha256": digest}}})
    assert check(world).outcome is Outcome.VALIDATED


def test_training_rows_that_are_in_the_validation_file_are_dropped_and_counted(world: Any) -> None:
    first = (world.bucket / "rows.jsonl").read_text().splitlines()[:30]
    (world.bucket / "held.jsonl").write_text("\n".join(first) + "\n")
    world.with_config(
        {"dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}, "validation": {"uri": "s3://bucket/held.jsonl"}}}
    )
    counts = check(world).dataset
    assert counts is not None
    assert (counts.train_rows, counts.validation_rows) == (70, 30)
    assert counts.rejected_rows_by_code is not None
    assert counts.rejected_rows_by_code["EVAL_LEAK"] == 30
    assert len((world.out / Artifact.VALIDATION_ROWS).read_text().splitlines()) == 30


def test_max_samples_counts_accepted_training_rows(world: Any) -> None:
    world.with_config({"dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}, "maxSamples": 25}})
    counts = check(world).dataset
    assert counts is not None
    assert (counts.train_rows, counts.validation_rows) == (25, 0)
    assert not (world.out / Artifact.VALIDATION_ROWS).exists()


def test_the_heartbeat_moves_with_rows_and_bytes(world: Any) -> None:
    check(world)
    assert world.reporter.snapshot().heartbeat > 10


def test_a_stop_ends_preflight_before_anything_is_written(world: Any) -> None:
    world.stop.set()
    with pytest.raises(Stopped):
        check(world)
    assert not world.out.exists()


def test_of_two_jobs_that_claim_at_once_one_wins(world: Any) -> None:
    from finetune_trainer.publishing.claim import claim_prefix

    outcomes: list[str] = []
    configs = [world.with_config(name=f"job-{index}").config for index in range(8)]
    barrier = threading.Barrier(len(configs))

    def contend(config: Any) -> None:
        barrier.wait()
        try:
            claim_prefix(config, world.storage)
            outcomes.append("won")
        except TrainerError as error:
            outcomes.append(error.code.reason)

    threads = [threading.Thread(target=contend, args=(config,)) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["OutputConflict"] * 7 + ["won"]
