"""The verdict of real trainings: a better, a worse and an unchanged model, each as it will be served."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from training_bench import HYPERPARAMETERS, Bench, make_rows, preference_rows

from finetune_api.comparing.measured import MeasuredRows
from finetune_api.handoff import Outcome, Report
from finetune_trainer.data.rows import ChatRow, DataFormat, Source
from finetune_trainer.evaluation.logprobs import HeldOut, mean_loss
from finetune_trainer.models.loading import load_plain
from finetune_trainer.pipeline import served
from finetune_trainer.tokenization.labeler import Labeler

MakeBench = Callable[..., Bench]
CPU = torch.device("cpu")
SHORT = HYPERPARAMETERS | {"maxSteps": 8}
NOISE = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": "zq " * (5 + n % 9)}]}
    for n in range(60)
]
"""Rows from which a model unlearns the held-out ones."""


def run(
    make_bench: MakeBench,
    rows: list[dict[str, Any]] | None = None,
    held_out: list[dict[str, Any]] | None = None,
    **blocks: Any,
) -> tuple[Bench, Report]:
    """A job whose held-out rows are a file of their own."""
    blocks["dataset"] = {
        "train": {"uri": "s3://bucket/data/train.jsonl"},
        "validation": {"uri": "s3://held/rows.jsonl"},
    }
    bench = make_bench(blocks.pop("method", "LoRA"), **blocks)
    held = bench.root / "held"
    held.mkdir(parents=True)
    questions = preference_rows(140) if blocks.get("objective") in {"DPO", "RewardModel"} else make_rows(140)
    lines = "".join(json.dumps(row) + "\n" for row in held_out or questions[100:])
    (held / "rows.jsonl").write_text(lines, encoding="utf-8")
    bench.elsewhere["s3://held"] = held
    bench.rows = rows or questions[:100]
    return bench, bench.run()


@pytest.mark.parametrize(
    ("rows", "rate", "verdict"),
    [(None, 0.01, "Better"), (NOISE, 0.05, "Worse"), (None, 1e-9, "NoMeasurableDifference")],
    ids=["better", "worse", "unchanged"],
)
@pytest.mark.parametrize(
    "method", ["LoRA", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("Full", "QLoRA"))]
)
def test_a_model_is_judged_by_what_training_did_to_it(
    make_bench: MakeBench, method: str, rows: list[dict[str, Any]] | None, rate: float, verdict: str
) -> None:
    hyper = SHORT | {"learningRate": rate / 10 if method == "Full" and verdict == "Better" else rate}
    gate = {"steps": 4, "prompts": [], "gate": {"mustImprove": True}}
    bench, report = run(make_bench, rows, method=method, hyperparameters=hyper, evaluation=gate)
    found = report.evaluation
    assert found is not None
    assert found.verdict == verdict, found
    assert (found.rows, found.metric) == (40, "Loss")
    assert found.difference_low <= found.difference <= found.difference_high  # type: ignore[operator]
    assert (found.gate, report.outcome) == (
        ("Passed", Outcome.PUBLISHED) if verdict == "Better" else ("NotMet", Outcome.GATE_NOT_MET)
    )
    rows_of_it = MeasuredRows.model_validate_json((bench.output / "held_out.json").read_bytes())
    tokens = sum(count for _, count in rows_of_it.parts)
    assert sum(mean * count for mean, count in rows_of_it.parts) / tokens == pytest.approx(found.after, rel=1e-4)
    assert rows_of_it.evaluations == 2
    page = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert found.verdict_message is not None
    assert found.verdict_message.partition(":")[0].capitalize() in page
    if method != "Full":
        card = (bench.output / "adapter" / "README.md").read_text(encoding="utf-8")
        assert found.verdict_message.partition(":")[0].capitalize() in card


CONVERSATIONS = [
    {
        "messages": [
            turn for row in make_rows(104)[100 + at : 101 + at] + make_rows(10)[:count] for turn in row["messages"]
        ]
    }  # type: ignore[attr-defined]
    for count in range(5)
    for at in range(4)
]
"""Longer and shorter parts of four conversations."""
RANKED = [
    {
        "prompt": row["prompt"],
        "responses": [row["chosen"], *(f"I know {n} of that." for n in range(5))],
        "ranks": [*range(6)],
    }
    for row in preference_rows(104)[100:]
]
"""Four questions with six answers each, of which the first one is the best."""


@pytest.mark.parametrize(("objective", "held_out"), [("Chat", CONVERSATIONS), ("DPO", RANKED)])
def test_many_rows_of_four_prompts_have_no_verdict_and_the_sentence_has_the_fix(
    make_bench: MakeBench, objective: str, held_out: list[dict[str, Any]]
) -> None:
    blocks = {"hyperparameters": SHORT, "evaluation": {"steps": 4, "prompts": []}}
    _, report = run(make_bench, objective=objective, held_out=held_out, **blocks)
    found = report.evaluation
    assert found is not None
    assert (found.verdict, found.rows, found.difference_low) == ("NotEvaluated", 20, None), found
    assert "20 held-out rows of 4 different prompts or conversations are too few" in str(found.verdict_message)
    assert str(found.verdict_message).endswith("hold out rows of 20 or more")


def test_qlora_is_judged_on_the_base_in_16_bits(make_bench: MakeBench) -> None:
    evaluation = {"steps": 4, "maxNewTokens": 4}
    bench, report = run(make_bench, method="QLoRA", hyperparameters=SHORT, evaluation=evaluation)
    labeler = Labeler(bench.model)
    rows = [
        sample
        for line in (bench.root / "held" / "rows.jsonl").read_text().splitlines()
        for sample in labeler.encode(_row(json.loads(line)), "Instruction", 128)  # type: ignore[union-attr]
    ]
    model = load_plain(bench.model, torch.float32, CPU)
    plain = mean_loss(model, HeldOut(rows, lambda: None))  # type: ignore[arg-type]
    tuned = mean_loss(PeftModel.from_pretrained(model, bench.output / "adapter"), HeldOut(rows, lambda: None))  # type: ignore[arg-type]
    found = report.evaluation
    assert found is not None
    assert (found.before, found.after) == (pytest.approx(plain, rel=2e-5), pytest.approx(tuned, rel=2e-5))
    assert report.metrics is not None
    assert report.metrics.baseline_eval_loss != pytest.approx(plain, rel=5e-5)  # that of the 4-bit base
    page = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "base model, as served (16-bit base)" in page
    assert "tuned model, in training (4-bit base)" in page


def _row(line: dict[str, Any]) -> ChatRow:
    return ChatRow(line["messages"], Source("rows.jsonl", 1), DataFormat.OPENAI)


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_base_that_does_not_fit_in_16_bits_gives_no_verdict(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    """Several GPUs are told how to share it."""
    monkeypatch.setattr(served, "available_bytes", lambda: 4096)
    gate = {"steps": 4, "prompts": [], "gate": {"mustImprove": True, "maxEvalLoss": 100}}
    place = {"gpusPerNode": gpus}
    bench, report = run(make_bench, method="QLoRA", hyperparameters=SHORT, evaluation=gate, resources=place)
    assert report.evaluation is not None
    assert (report.evaluation.verdict, report.evaluation.before) == ("NotEvaluated", None)
    assert "the base in 16 bits, as serving software loads it, needs" in str(report.evaluation.verdict_message)
    has_fix = "with tuning.lora.shardBase the job's GPUs share it out" in str(report.evaluation.verdict_message)
    assert has_fix == (gpus > 1)
    assert (report.outcome, report.evaluation.gate) == (Outcome.GATE_NOT_MET, "NotMet")
    page = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "These are figures of the 4-bit base of the training." in page
    assert "Measure the adapter on the base that you will serve" in page


@pytest.mark.nightly
@pytest.mark.parametrize("objective", ["DPO", "RewardModel"])
def test_preferences_under_qlora_are_judged_as_served_too(make_bench: MakeBench, objective: str) -> None:
    hyper = SHORT | {"maxSteps": 12, "learningRate": 0.005}
    blocks = {"hyperparameters": hyper, "evaluation": {"steps": 6, "maxNewTokens": 4}}
    _, report = run(make_bench, method="QLoRA", objective=objective, **blocks)
    found = report.evaluation
    assert found is not None
    assert found.verdict == "Better", found
    if objective == "DPO":
        assert found.before == pytest.approx(0.6931, abs=1e-4)


def test_three_held_out_rows_are_answered_without_asking(make_bench: MakeBench) -> None:
    bench, _ = run(make_bench, hyperparameters=SHORT, evaluation={"steps": 4, "maxNewTokens": 4})
    page = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert page.count("### Question") == 3
    assert "The prompts of held-out rows (`evaluation.prompts` is not set)." in page
    assert page.count("The answer in the row:") == 3
    assert page.index("## Answers before and after") < page.index("## Recommendations")


def test_what_was_read_is_in_the_report_and_less_than_an_epoch_is_advised_against(make_bench: MakeBench) -> None:
    bench, _ = run(
        make_bench, hyperparameters=HYPERPARAMETERS | {"maxSteps": 3, "packing": "Never"}, evaluation={"prompts": []}
    )
    page = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "The training read 24 of 100 rows (0.24 epochs)." in page
    assert "most rows were never read" in page
