"""What a real training made a model forget, on multiple-choice questions before and after."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from thin_slice import thin_slice
from torch.nn.utils.rnn import pad_sequence
from training_bench import HYPERPARAMETERS, Bench
from transformers import AutoModelForCausalLM

from finetune_api.handoff import Artifact, ExitCode, Outcome, Report
from finetune_api.status import Metrics
from finetune_trainer.data.ability import Question
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.choices import answer_questions, encode_choices
from finetune_trainer.publishing.lineage import digest_folder
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.training.checkpoint_files import BaselineOutputs, SavedRun

MakeBench = Callable[..., Bench]
COLOURS = ["red", "green", "blue", "black"]
THINGS = ["sky", "sea", "rose", "snow", "coal", "leaf", "sand", "wine"]
QUESTIONS = [
    Question(f"What is the colour of {thing} {number}?", COLOURS, at % 4)
    for number in range(5)
    for at, thing in enumerate(THINGS)
]
NOISE = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": "zq " * (5 + n % 9)}]}
    for n in range(60)
]


def write(path: Path, questions: list[Question]) -> None:
    """Write the questions in the columns of MMLU."""
    rows = [{"question": one.question, "choices": one.choices, "answer": one.correct} for one in questions]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt the answers to the questions."""
    directory = tmp_path_factory.mktemp("taught") / "model"
    shutil.copytree(tiny_model, directory)
    tokenizer, model = Labeler(tiny_model).tokenizer, AutoModelForCausalLM.from_pretrained(tiny_model)
    texts = [encode_choices(tokenizer, one, 128)[one.correct] for one in QUESTIONS]
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(100):
        chosen = [texts[(step * 7 + at * 3) % len(texts)] for at in range(8)]
        ids = pad_sequence([torch.tensor(one.ids) for one in chosen], True)
        labels = pad_sequence([torch.tensor([-100] * one.first + one.ids[one.first :]) for one in chosen], True, -100)
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(directory)
    return directory


def make(
    make_bench: MakeBench, taught: Path, *, rate: float, method: str = "LoRA", gate: dict[str, Any] | None = None
) -> Bench:
    """A job of a few steps on rows from which the model unlearns the answers, if the rate is high."""
    hyper = HYPERPARAMETERS | {"maxSteps": 8, "learningRate": rate}
    evaluation: dict[str, Any] = {"steps": 8, "prompts": [], "ability": {"uri": "s3://exam/questions.jsonl"}}
    bench = make_bench(method, hyperparameters=hyper, evaluation=evaluation | ({"gate": gate} if gate else {}))
    bench.model, bench.rows = taught, NOISE
    bench.elsewhere["s3://exam"] = bench.root / "exam"
    write(bench.root / "exam" / "questions.jsonl", QUESTIONS)
    return bench


def test_the_choice_is_that_of_the_summed_log_probability_per_character(taught: Path) -> None:
    tokenizer, model = Labeler(taught).tokenizer, AutoModelForCausalLM.from_pretrained(taught)
    uneven = [Question("What?", ["a", "a rather long choice of words", "b"], 1), *QUESTIONS[:8]]
    counted: list[int] = []
    found = answer_questions(model, tokenizer, uneven, counted.append)
    expected = []
    for question in uneven:
        scores = []
        for choice in question.choices:
            start = len(tokenizer.encode(f"Question: {question.question}\nAnswer:").ids)
            ids = torch.tensor([tokenizer.encode(f"Question: {question.question}\nAnswer: {choice}").ids])
            log_probs = model(ids).logits[0].log_softmax(-1)
            own = sum(float(log_probs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1]))
            scores.append(own / len(choice))
        expected.append(scores.index(max(scores)) == question.correct)
    assert found == expected
    assert found[1:] == [True] * 8, "the model was taught these"
    assert counted == list(range(1, 10))


def test_a_question_longer_than_the_context_keeps_its_end(taught: Path) -> None:
    tokenizer, model = Labeler(taught).tokenizer, AutoModelForCausalLM.from_pretrained(taught)
    model.config.max_position_embeddings = 64
    question = Question("word " * 500 + QUESTIONS[0].question, COLOURS, QUESTIONS[0].correct)
    choices = encode_choices(tokenizer, question, 64)
    assert {len(one.ids) for one in choices} == {64}
    assert all(tokenizer.decode(one.ids[one.first :]).strip() in COLOURS for one in choices)
    assert answer_questions(model, tokenizer, [question], lambda _: None) in ([True], [False])


@pytest.mark.parametrize("method", thin_slice(["LoRA", "QLoRA", "Full"], "LoRA"))
def test_a_model_that_forgot_fails_its_gate_and_the_report_advises_what_to_change(
    make_bench: MakeBench, taught: Path, method: str
) -> None:
    bench = make(make_bench, taught, rate=0.03, method=method, gate={"maxForgotten": 10})
    report = bench.run()
    found = report.evaluation
    assert found is not None
    assert found.ability is not None
    assert found.ability.before_percent == 100
    assert found.ability.has_forgotten
    assert (report.outcome, found.gate) == (Outcome.GATE_NOT_MET, "NotMet")
    assert f"{found.ability.after_percent:.1f} % of 40 questions" in str(found.gate_message)
    assert "more than maxForgotten 10" in str(found.gate_message)
    page = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "general ability lost: 100.0 % →" in page
    assert "Check whether you need what the model has forgotten." in page
    assert ("use tuning.method LoRA" in page) == (method == "Full")
    validation = json.loads((bench.output / "validation.json").read_text(encoding="utf-8"))
    assert validation["verdict"]["ability"]["questions"] == 40
    assert Artifact.ABILITY_ROWS in digest_folder(bench.output)


def test_a_model_that_kept_its_ability_meets_the_gate(make_bench: MakeBench, taught: Path) -> None:
    report: Report = make(make_bench, taught, rate=1e-9, gate={"maxForgotten": 0}).run()
    found = report.evaluation
    assert found is not None
    assert found.ability is not None
    assert (found.ability.before_percent, found.ability.after_percent, found.ability.difference_points) == (100, 100, 0)
    assert (report.outcome, found.gate) == (Outcome.PUBLISHED, "Passed")
    assert "general ability 100.0 % → 100.0 % of 40 questions" in str(found.verdict_message)


def test_a_bad_or_changed_file_of_questions_is_refused_before_training(make_bench: MakeBench, taught: Path) -> None:
    bench = make(make_bench, taught, rate=0.01)
    (bench.root / "exam" / "questions.jsonl").write_text('{"question": "?", "choices": ["a"], "answer": 0}\n')
    with pytest.raises(TrainerError, match=r"line 1: choices has 1 texts: give 2 to 26") as bad:
        bench.prepare()
    assert bad.value.code is ExitCode.DATASET_UNUSABLE
    changed = make(make_bench, taught, rate=0.01)
    changed.spec["evaluation"]["ability"]["sha256"] = "0" * 64
    with pytest.raises(TrainerError, match=r"differs from spec\.evaluation\.ability\.sha256"):
        changed.prepare()
    missing = make(make_bench, taught, rate=0.01)
    missing.spec["evaluation"]["ability"]["uri"] = "s3://exam/none.jsonl"
    with pytest.raises(TrainerError, match=r"correct spec\.evaluation\.ability\.uri, or upload the questions"):
        missing.prepare()


def test_a_checkpoint_keeps_the_answers_before_the_training(tmp_path: Path) -> None:
    saved = SavedRun(BaselineOutputs(["a"], [], [True, False]), Metrics(), 1.0)
    saved.write(tmp_path / "saved.json")
    assert SavedRun.read(tmp_path / "saved.json") == saved
