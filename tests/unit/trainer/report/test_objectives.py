"""Reports of preferences, reward models and policies: the objective's own figures, and none that mean nothing there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.handoff import JobConfig
from finetune_api.objectives import Objective
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import DatasetStatus, Resolved
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import Measured, TrainPoint, reward_mean, token_mean
from finetune_trainer.evaluation.run_record import (
    Machine,
    RewardedAnswer,
    RunRecord,
    SampleStats,
    ScoreCheck,
    ScoredPair,
)
from finetune_trainer.report.curves import curve_table
from finetune_trainer.report.document import write_documents

HOSTILE = "<script>x</script>\n# heading \x1b[31m"


def rewarded(tmp_path: Path, *, first: float = 0.25, last: float = 0.75, **figures: float) -> History:
    """A policy's history of four steps, evaluated at the start, in the middle and at the end."""
    history = History(tmp_path / "metrics.jsonl")
    history.add_reward(reward_mean(0, [first] * 6 + [first + 0.4] * 2, completion_length=9.0, clipped_share=0.25))
    plain = {"reward": 0.5, "kl": 0.01, "completion_length": 8.0, "clipped_share": 0.0, "flat_share": 0.0}
    for step in range(1, 5):
        history.add_step(TrainPoint(step, step / 4, 0.1, 1e-4, 1.0, 50.0, 0.1, **(plain | figures)))
    history.add_reward(reward_mean(2, [0.5] * 8, completion_length=8.0, clipped_share=0.0))
    history.set_final_reward(reward_mean(4, [last] * 8, completion_length=5.0, clipped_share=0.0))
    return history


def measured(tmp_path: Path) -> History:
    history = History(tmp_path / "metrics.jsonl")
    history.add_evaluation(0, Measured(0.693, 20, None, 0.0, 0.5, batches=((0.693, 2),) * 10))
    history.add_step(TrainPoint(1, 0.5, 0.7, 1e-4, 1.0, 50.0, 0.1, reward_margin=0.1, reward_accuracy=0.5))
    history.add_step(TrainPoint(2, 1.0, 0.5, 1e-4, 1.0, 50.0, 0.1, reward_margin=0.9, reward_accuracy=1.0))
    spread = ((0.35, 2), (0.45, 2)) * 5
    history.add_evaluation(2, Measured(0.4, 20, 0.01, 1.25, 0.9, batches=spread))
    return history


LENGTH: dict[str, Any] = {"type": "Length", "targetTokens": 5}


def write(
    tmp_path: Path,
    objective: str,
    history: History,
    method: str = "LoRA",
    rewards: Sequence[dict[str, Any]] = (LENGTH,),
    *,
    dpo: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    spec = {
        "objective": objective,
        "model": {"uri": "hf://owner/base", "revision": "v1"},
        "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
        "output": {"uri": "s3://bucket/out"},
        "rlhf": {"rewards": list(rewards)} if objective == "RLHF" else None,
        "dpo": dpo,
        "distillation": {"teacher": {"uri": "hf://owner/larger"}} if objective == "Distillation" else None,
    }
    config = JobConfig(
        namespace="default", name="job", uid="u", config_sha256="c" * 64, spec=FineTuneJobSpec.model_validate(spec)
    )
    settings = Resolved(
        method=method,
        method_reason="set in tuning.method",
        total_steps=4,
        max_length=128,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        global_batch_size=16,
        num_generations=4 if objective == "RLHF" else None,
        temperature=0.8 if objective == "RLHF" else None,
        max_completion_length=32 if objective == "RLHF" else None,
        lora_rank=16,
        seed=1,
        estimated_gpu_memory_bytes=5 * 2**30,
    )
    values = {
        "config": config,
        "settings": settings,
        "dataset": DatasetStatus(rows=300, accepted_rows=300),
        "samples": SampleStats(280, 20, 280, 0.0, 0.0 if objective == "RLHF" else 0.4, 60, 128, 128),
        "previews": [],
        "history": history,
        "baseline": history.baseline(),
        "final": history.evaluations[-1].measured if history.evaluations else None,
        "compared_rows": 20,
        "best_step": 4,
        "early_stopping": None,
        "trainable_parameters": 10,
        "answers": [],
        "merge": None,
        "machine": Machine("CPU", 2**30, None, 1.0, {}),
    }
    (tmp_path / ("adapter" if method == "LoRA" else "merged")).mkdir()
    write_documents(RunRecord(**(values | changes)), tmp_path, {})
    return (tmp_path / "finetune_report.md").read_text(encoding="utf-8")


def card(tmp_path: Path, folder: str) -> tuple[dict[str, Any], str]:
    _, front, body = (tmp_path / folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_policys_report_shows_rewards_and_no_loss(tmp_path: Path) -> None:
    report = write(tmp_path, "RLHF", rewarded(tmp_path))
    assert "**Better than the base model: held-out reward 0.35 → 0.75, +0.4 (95 % interval " in report
    assert "| tuned model      | 0.75        | 0" in report
    assert "perplexity" not in report
    assert "only the prompts are used" in report
    assert "2 accumulated = **16 answers a step** (4 to each prompt)" in report
    assert card(tmp_path, "adapter")[0]["tags"] == ["finetune-operator", "lora", "rlhf"]


def test_the_interval_of_a_reward_is_that_of_its_number_of_prompts(tmp_path: Path) -> None:
    history = rewarded(tmp_path)
    report = write(tmp_path, "RLHF", history)
    assert "| base model       | 0.35        | 0.14 |" in report  # of two different rewards: 0.4 times that of 2 of 8


def test_a_reward_of_four_prompts_has_no_interval(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.jsonl")
    sampled: dict[str, float] = {"completion_length": 9.0, "clipped_share": 0.0}
    owners = [(1, at // 2) for at in range(8)]
    history.add_reward(reward_mean(0, [0.1, 0.2] * 4, **sampled))
    history.add_step(TrainPoint(1, 1, 0.1, 1e-4, 1.0, 50.0, 0.1, reward=0.5))
    history.set_final_reward(reward_mean(1, [0.8, 0.8, 0.9, 0.9, 1.0, 1.0, 0.9, 0.9], owners=owners, **sampled))
    assert "| tuned model      | 0.9         | -" in write(tmp_path, "RLHF", history)


def test_a_students_report_shows_its_divergence_and_its_teacher(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.jsonl")
    for step, loss in ((0, 0.8), (4, 0.2)):
        history.add_evaluation(step, token_mean([(loss + at / 100, 9) for at in range(4)]))
    history.add_step(TrainPoint(4, 1, 0.1, 1e-4, 1.0, 50.0, 0.1, clipped_share=0.5))
    report = write(tmp_path, "Distillation", history)
    assert "| held-out rows | divergence | tokens |" in report
    assert "in nats per token of the teacher's answers to these prompts" in report
    assert "erplexity" not in report
    assert "only the prompts are used" in report
    assert "Raise distillation.maxCompletionLength" in report
    front, body = card(tmp_path, "adapter")
    assert front["tags"] == ["finetune-operator", "lora", "distillation"]
    assert "It learnt from `hf://owner/larger`." in body


def test_each_computed_reward_of_a_policy_is_in_the_report_before_and_after(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.jsonl")
    sampled: dict[str, float] = {"completion_length": 9.0, "clipped_share": 0.0}
    before, after = [(0.0, 0.5)] * 3 + [(1.0, 0.5)], [(1.0, 0.25)] * 4
    history.add_reward(reward_mean(0, [0.1] * 4, parts=before, **sampled))
    history.add_step(TrainPoint(1, 1, 0.1, 1e-4, 1.0, 50.0, 0.1, reward=0.5))
    history.set_final_reward(reward_mean(1, [0.9] * 4, parts=after, **sampled))
    rewards = [{"type": "Answer", "answer": {"match": "Exact"}}, {"type": "Length", "targetTokens": 5, "weight": 0.1}]
    report = write(tmp_path, "RLHF", history, rewards=rewards)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if line.startswith("| ")]
    assert next(row[:4] for row in rows if row[0] == "reward") == [
        "reward",
        "weight",
        "mean, base model",
        "mean, tuned model",
    ]
    assert ["1. Answer", "1", "0.25", "1", "75.0 %", "0.0 %"] in rows
    assert ["2. Length", "0.1", "0.5", "0.25", "0.0 %", "0.0 %"] in rows
    assert "only the prompts are used" not in report


def test_a_policys_curve_has_reward_divergence_and_length(tmp_path: Path) -> None:
    header, _, first, *rows = curve_table(rewarded(tmp_path), Objective.RLHF).splitlines()
    assert [cell.strip() for cell in header.split("|")[2:6]] == [
        "training reward", "held-out reward", "KL", "tokens per answer",
    ]  # fmt: skip
    assert [cell.strip() for cell in first.split("|")[1:4]] == ["0", "-", "0.35"]
    assert [cell.strip() for cell in rows[-1].split("|")[1:6]] == ["4", "0.5", "-", "0.01", "8"]


def test_sampled_answers_are_shown_with_their_rewards(tmp_path: Path) -> None:
    answers = [RewardedAnswer(HOSTILE, "before", 0.125, HOSTILE, 1.0)]
    report = write(tmp_path, "RLHF", rewarded(tmp_path), rewarded_answers=answers)
    assert "Base model, reward 0.125:\n\n    before" in report
    assert "Tuned model, reward 1:" in report
    assert "\x1b" not in report
    assert not [line for line in report.splitlines() if line.startswith(("<script", "# heading"))]


@pytest.mark.parametrize("objective", ["DPO", "RewardModel"])
def test_pairs_are_reported_with_margin_and_accuracy(tmp_path: Path, objective: str) -> None:
    report = write(tmp_path, objective, measured(tmp_path))
    assert "**Better than the base model: held-out loss 0.693 → 0.4, -42 % (95 % interval " in report
    assert "| base model     | 0.693 | 0      | 50.0 %   | 20    |" in report
    assert "| tuned model    | 0.4   | 1.25   | 90.0 %   | 20    |" in report
    assert "perplexity" not in report
    assert "evaluation accuracy" in report


@pytest.mark.parametrize(
    ("dpo", "is_known"),
    [
        (None, True),
        ({"beta": 0.2}, True),
        ({"lossType": "robust"}, True),
        ({"lossType": "sigmoid_norm"}, True),
        ({"lossType": "ipo"}, False),
        ({"lossType": "hinge"}, False),
        ({"sftWeight": 1}, False),
    ],
)
def test_the_loss_of_random_guessing_is_named_if_the_loss_has_one(
    tmp_path: Path, dpo: dict[str, Any] | None, is_known: bool
) -> None:
    report = write(tmp_path, "DPO", measured(tmp_path), dpo=dpo)
    assert "a margin above zero." in report
    assert ("Random guessing has a loss of 0.693." in report) is is_known
    assert ("Random guessing has a loss of 0.693." in card(tmp_path, "adapter")[1]) is is_known


def test_judged_answers_have_a_margin_and_no_accuracy(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.jsonl")
    history.add_evaluation(0, Measured(0.5, 20, None, 0.0, batches=((0.5, 10),) * 2))
    history.add_step(TrainPoint(1, 0.5, 0.5, 1e-4, 1.0, 50.0, 0.1, reward_margin=0.1))
    history.add_evaluation(1, Measured(0.4, 20, None, 1.25, batches=((0.4, 10),) * 2))
    report = write(tmp_path, "KTO", history)
    assert "Not evaluated: 20 held-out rows are too few for an interval" in report
    assert "accuracy" not in report.partition("## Curves")[0]


def test_a_reward_models_report_shows_how_it_scores_and_how_to_use_it(tmp_path: Path) -> None:
    pairs = [ScoredPair(HOSTILE, "good", "bad", 1.5, -0.5)]
    report = write(tmp_path, "RewardModel", measured(tmp_path), scored_pairs=pairs)
    assert "Chosen, score 1.5:\n\n    good" in report
    assert "Rejected, score -0.5:\n\n    bad" in report
    assert 'rewardModel: {uri: "s3://bucket/out/adapter"}' in report
    assert "hf download owner/base --revision v1 \\\n      --local-dir base" in report
    assert "vllm" not in report
    front, body = card(tmp_path, "adapter")
    assert front["pipeline_tag"] == "text-classification"
    assert "one score" in body


def test_a_complete_reward_model_comes_with_its_check(tmp_path: Path) -> None:
    report = write(
        tmp_path, "RewardModel", measured(tmp_path), method="Full", score_check=ScoreCheck("BF16", 64, 0.0123)
    )
    assert "scored 64 held-out texts; the largest difference from the model as trained is 0.012" in report
    assert 'rewardModel: {uri: "s3://bucket/out/merged"}' in report
    assert "A complete model (BF16)" in card(tmp_path, "merged")[1]


def test_the_estimate_is_next_to_the_measured_peak(tmp_path: Path) -> None:
    report = write(tmp_path, "DPO", measured(tmp_path))
    assert "peak memory 1.0 GiB; preflight's estimate for a GPU was 5.0 GiB" in report
