"""How many held-out rows a model answers correctly before a real training and after it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from thin_slice import thin_slice
from training_bench import HYPERPARAMETERS, Bench, make_spec

from finetune_api.handoff import Artifact, Outcome
from finetune_trainer.errors import TrainerError

MakeBench = Callable[..., Bench]


def rows(*answers: str) -> list[dict[str, object]]:
    """Different questions, with these answers in turn."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Is {n} a number?"},
                {"role": "assistant", "content": answers[n % len(answers)]},
            ]
        }
        for n in range(150)
    ]


def make(make_bench: MakeBench, method: str, answers: dict[str, Any], **evaluation: Any) -> Bench:
    """A job whose model learns one answer to all questions."""
    hyper = HYPERPARAMETERS | {"maxSteps": 60, "learningRate": 0.003, "lrSchedulerType": "constant"}
    asked = {"steps": 60, "prompts": [], "maxNewTokens": 8, "answers": answers} | evaluation
    bench = make_bench(method, hyperparameters=hyper, evaluation=asked)
    bench.rows = rows("Yes.")
    return bench


@pytest.fixture(scope="module")
def contrary(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that mostly answers with no, and could say yes."""
    hyper = HYPERPARAMETERS | {"maxSteps": 80, "learningRate": 0.003, "lrSchedulerType": "constant"}
    spec = make_spec("Full", hyperparameters=hyper, evaluation={"steps": 80, "prompts": []})
    bench = Bench(tmp_path_factory.mktemp("contrary"), tiny_model, spec, rows("No.", "No.", "Yes."))
    found = bench.run().evaluation
    assert found
    assert found.after is not None
    assert found.after < 0.5, found.verdict_message
    return bench.output / Artifact.MERGED


@pytest.mark.parametrize("method", thin_slice(["LoRA", "QLoRA", "Full"], "LoRA"))
def test_a_model_that_has_learnt_the_answer_meets_its_gate(make_bench: MakeBench, contrary: Path, method: str) -> None:
    bench = make(make_bench, method, {"match": "Exact", "rows": 20}, gate={"minCorrect": 90})
    bench.model = contrary
    report = bench.run()
    found = report.evaluation
    assert found
    assert found.answers
    assert (report.outcome, found.gate) == (Outcome.PUBLISHED, "Passed"), found.verdict_message
    assert (found.answers.rows, found.answers.before_percent, found.answers.after_percent) == (20, 0, 100)
    assert found.answers.difference_low_points is not None
    assert found.answers.difference_low_points > 50
    assert "correct answers to held-out rows: 0.0 % → 100.0 % of 20" in str(found.verdict_message)
    page = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "Of them, 20 became right and 0 wrong" in page
    assert "## Answers before and after" not in page, "those that are counted are not shown"
    assert "## Wrong answers" not in page


def test_a_model_that_answers_otherwise_fails_its_gate_and_the_report_shows_wrong_answers(
    make_bench: MakeBench,
) -> None:
    bench = make(make_bench, "LoRA", {"match": "Numeric", "extract": "LastNumber", "rows": 20}, gate={"minCorrect": 10})
    bench.spec["hyperparameters"] = HYPERPARAMETERS | {"maxSteps": 2}
    bench.rows = [
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(1000, 1150)
    ]
    report = bench.run()
    found = report.evaluation
    assert found
    assert (report.outcome, found.gate) == (Outcome.GATE_NOT_MET, "NotMet")
    assert "of 20 answers to held-out rows" in str(found.gate_message)
    assert "below minCorrect 10" in str(found.gate_message)
    page = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "## Wrong answers to held-out rows" in page
    assert re.search(r"\n\nThe first 5 of \d\d wrong answers of the tuned model.\n\n### Row 1\n", page)
    assert page.count("The answer in the row:") >= 1


def test_rows_that_no_answer_can_be_compared_with_are_refused_before_training(make_bench: MakeBench) -> None:
    with pytest.raises(TrainerError, match="match Numeric can be compared with") as refused:
        make(make_bench, "LoRA", {"match": "Numeric"}).prepare()
    assert refused.value.code.reason == "InvalidConfig"
