"""`checkpoint.keep`: adapters of other steps, published next to the result, loaded and measured as it is."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from published_result import find_result_faults
from safetensors.torch import load_file
from training_bench import HYPERPARAMETERS, Bench, preference_rows

from finetune_api.handoff import Manifest, Outcome, Report
from finetune_api.status import KeptCheckpoint
from finetune_trainer.commands.verify import verify_result

MakeBench = Callable[..., Bench]
ASKED: dict[str, Any] = {"prompts": [{"prompt": "What is the colour of sky 7?"}], "maxNewTokens": 8}
SHORT: dict[str, Any] = {"hyperparameters": HYPERPARAMETERS | {"maxSteps": 6}}
ALL_ROWS: dict[str, Any] = {"train": {"uri": "s3://bucket/data/train.jsonl"}}
REWARD: dict[str, Any] = {"type": "Regex", "pattern": "[aeiou]{2}"}


def kept_of(report: Report) -> list[KeptCheckpoint]:
    assert report.outcome is Outcome.PUBLISHED
    assert report.artifacts
    return report.artifacts.kept_checkpoints or []


def folders(bench: Bench) -> list[str]:
    return sorted(path.name for path in (bench.output / "kept-checkpoints").glob("*"))


def read_losses(bench: Bench) -> dict[int, float]:
    """Return the held-out loss of each evaluation of the training."""
    lines = map(json.loads, (bench.output / "metrics.jsonl").read_text("utf-8").splitlines())
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "eval" and line["step"]}


@pytest.fixture(scope="module")
def kept(make_bench: MakeBench) -> tuple[Bench, Report]:
    bench = make_bench("LoRA", evaluation=ASKED | {"steps": 5}, checkpoint={"keep": 2})
    return bench, bench.run()


def test_the_steps_next_to_the_best_are_published_as_adapters_that_have_their_losses(
    make_bench: MakeBench, kept: tuple[Bench, Report]
) -> None:
    bench, report = kept
    losses = read_losses(bench)
    best, *others = sorted(losses, key=lambda step: losses[step])
    assert report.metrics
    assert report.metrics.best_step == best
    found = kept_of(report)
    assert [one.step for one in found] == others[:2]
    assert folders(bench) == sorted(f"step-{step:06d}" for step in others[:2])
    assert found[0].uri == f"s3://bucket/output/kept-checkpoints/step-{others[0]:06d}"
    assert [one.eval_loss for one in found] == [pytest.approx(losses[one.step], rel=1e-4) for one in found]

    measuring = make_bench(
        mode="Evaluate",
        tuning={"initialAdapter": {"uri": f"s3://bucket/first/kept-checkpoints/step-{others[1]:06d}"}},
        hyperparameters={"maxLength": 128},
        evaluation=ASKED,
    )
    measuring.elsewhere["s3://bucket/first"] = bench.output
    measured = measuring.run()
    assert measured.evaluation
    assert measured.evaluation.after == pytest.approx(losses[others[1]], rel=1e-4)


def test_a_kept_checkpoint_has_the_files_of_the_result_and_is_in_manifest_and_report(
    kept: tuple[Bench, Report],
) -> None:
    bench, report = kept
    manifest = Manifest.model_validate_json((bench.output / "manifest.json").read_bytes())
    listed = {file.path for file in manifest.files}
    for one in kept_of(report):
        folder = bench.output / one.uri.removeprefix("s3://bucket/output/")
        names = {path.name for path in folder.iterdir()}
        assert names | {"README.md"} == {path.name for path in (bench.output / "adapter").iterdir()}
        assert {f"{folder.relative_to(bench.output)}/{name}" for name in names} <= listed
        own, result = (load_file(path / "adapter_model.safetensors") for path in (folder, bench.output / "adapter"))
        assert own.keys() == result.keys()
        assert not all(own[name].equal(result[name]) for name in own)
    assert find_result_faults("s3://bucket/output", bench.storage) == []
    assert verify_result("s3://bucket/output", bench.storage).faults == []
    assert not (bench.output / "checkpoints").exists()
    page = (bench.output / "finetune_report.md").read_text("utf-8")
    section = page.partition("## Kept checkpoints")[2].partition("\n## ")[0]
    assert all(f"`kept-checkpoints/step-{one.step:06d}/`" in section for one in kept_of(report))
    assert "`adapter/`, the result" in section


def test_a_step_of_the_warm_up_whose_weights_are_still_those_of_the_start_is_not_kept(make_bench: MakeBench) -> None:
    bench = make_bench("LoRA", evaluation=ASKED | {"steps": 1}, checkpoint={"keep": 10}, **SHORT)
    report = bench.run()
    assert report.metrics
    assert sorted([*(one.step for one in kept_of(report)), report.metrics.best_step]) == [2, 3, 4, 5, 6]
    assert "the training had no more evaluations" in (bench.output / "finetune_report.md").read_text("utf-8")


def test_without_held_out_rows_the_last_steps_of_the_schedule_are_kept(make_bench: MakeBench) -> None:
    bench = make_bench("LoRA", dataset=ALL_ROWS, checkpoint={"keep": 2, "steps": 2}, **SHORT)
    found = kept_of(bench.run())
    assert [(one.step, one.eval_loss, one.eval_reward) for one in found] == [(4, None, None), (2, None, None)]
    assert folders(bench) == ["step-000002", "step-000004"]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("method", "blocks"),
    [
        ("QLoRA", {}),
        ("LoRA", {"tuning": {"method": "LoRA", "lora": {"initLoraWeights": "PiSSA"}}}),
        ("LoRA", {"objective": "DPO"}),
        ("LoRA", {"objective": "RewardModel", "evaluation": {"steps": 2}}),
    ],
)
def test_every_adapter_can_be_kept(make_bench: MakeBench, method: str, blocks: dict[str, Any]) -> None:
    bench = make_bench(method, **{"evaluation": ASKED | {"steps": 2}, "checkpoint": {"keep": 1}} | SHORT | blocks)
    bench.rows = preference_rows(120) if "objective" in blocks else bench.rows
    (found,) = kept_of(bench.run())
    assert found.eval_loss is not None
    assert verify_result("s3://bucket/output", bench.storage).faults == []


@pytest.mark.nightly
def test_of_a_policy_the_steps_with_the_highest_rewards_are_kept(make_bench: MakeBench) -> None:
    bench = make_bench(
        objective="RLHF",
        evaluation={"steps": 2},
        rlhf={"rewards": [REWARD], "numGenerations": 4, "maxCompletionLength": 8},
        checkpoint={"keep": 1},
        **SHORT,
    )
    (found,) = kept_of(bench.run())
    assert found.eval_loss is None
    assert found.eval_reward is not None
    assert "held-out reward" in (bench.output / "finetune_report.md").read_text("utf-8").partition("## Kept")[2]
