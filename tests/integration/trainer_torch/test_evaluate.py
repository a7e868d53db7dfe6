"""A job with mode Evaluate: the adapter of a real training, measured by a second job that trains nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_result import find_result_faults
from safetensors.torch import load_file
from training_bench import Bench, as_parent, make_rows

from finetune_api.handoff import ExitCode, Outcome, Report
from finetune_trainer.commands.verify import verify_result
from finetune_trainer.errors import TrainerError

MakeBench = Callable[..., Bench]
ASKED: dict[str, Any] = {"prompts": [{"prompt": "What is the colour of sky 7?"}], "maxNewTokens": 8}
WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained(make_bench: MakeBench) -> tuple[Bench, Report]:
    return train(make_bench, "LoRA")


def train(make_bench: MakeBench, method: str) -> tuple[Bench, Report]:
    bench = make_bench(method, evaluation=ASKED | {"steps": 20})
    bench.rows = make_rows(160)
    return bench, bench.run()


def evaluating(make_bench: MakeBench, trained: tuple[Bench, Report], **blocks: Any) -> Bench:
    """The second job: the same base and rows, and the adapter of the first one."""
    asked = {
        "mode": "Evaluate",
        "tuning": {"initialAdapter": {"fromParent": True}},
        "lineage": {"parentRef": {"name": "parent"}},
        "hyperparameters": {"maxLength": 128},
        "evaluation": ASKED,
    }
    bench = make_bench(**(asked | blocks))
    bench.rows = trained[0].rows
    bench.elsewhere["s3://bucket/parent"] = trained[0].output
    bench.parent = as_parent(*trained)
    return bench


@pytest.fixture(scope="module")
def evaluated(make_bench: MakeBench, trained: tuple[Bench, Report]) -> tuple[Bench, Report]:
    bench = evaluating(make_bench, trained, output={"uri": "s3://bucket/output", "merge": "FP32"})
    return bench, bench.run()


def test_the_figures_are_those_of_the_training(trained: tuple[Bench, Report], evaluated: tuple[Bench, Report]) -> None:
    require_same_figures(trained, evaluated)


@pytest.mark.nightly
def test_after_qlora_they_are_those_of_the_training_as_it_is_served(make_bench: MakeBench) -> None:
    trained = train(make_bench, "QLoRA")
    bench = evaluating(make_bench, trained)
    require_same_figures(trained, (bench, bench.run()))


def require_same_figures(trained: tuple[Bench, Report], evaluated: tuple[Bench, Report]) -> None:
    before, after = trained[1].evaluation, evaluated[1].evaluation
    assert before is not None
    assert after is not None
    assert (after.verdict, after.rows, after.served_as) == (before.verdict, before.rows, "Adapter")
    assert after.verdict == "Better"
    assert (after.before, after.after) == (pytest.approx(before.before), pytest.approx(before.after))
    texts = [(bench.output / "finetune_report.md").read_text() for bench in (trained[0], evaluated[0])]
    own, other = (text.partition("## Answers before and after")[2].partition("## ")[0] for text in texts)
    assert own == other != ""


def test_nothing_is_trained_and_everything_is_published_and_verified(
    trained: tuple[Bench, Report], evaluated: tuple[Bench, Report]
) -> None:
    bench, report = evaluated
    assert report.outcome is Outcome.PUBLISHED
    assert report.message is not None
    assert report.message.startswith("evaluated the adapter; better than the base model: ")
    assert report.last_step == 0
    verified = verify_result("s3://bucket/output", bench.storage)
    assert verified.faults == []
    assert {link.role for link in verified.chain} == {"base", "parent"}
    theirs, own = load_file(trained[0].output / WEIGHTS), load_file(bench.output / WEIGHTS)
    assert theirs.keys() == own.keys()
    assert all(theirs[name].equal(own[name]) for name in own)
    assert (bench.output / "merged" / "model.safetensors").is_file()
    assert report.resolved is not None
    resolved = report.resolved.model_dump(exclude_none=True)
    assert (resolved["mode"], resolved["method"]) == ("Evaluate", "LoRA")
    assert not resolved.keys() & {"gradient_accumulation_steps", "global_batch_size"}
    assert not resolved.keys() & {"total_steps", "learning_rate", "optim", "eval_steps", "num_train_epochs"}
    lineage = json.loads((bench.output / "lineage.json").read_text())
    assert lineage["parent"]["name"] == "parent"
    assert lineage["initialAdapter"]["uri"] == "s3://bucket/parent/adapter"


def test_the_report_names_no_training(evaluated: tuple[Bench, Report]) -> None:
    text = (evaluated[0].output / "finetune_report.md").read_text()
    page = (evaluated[0].output / "report.html").read_text()
    assert text.startswith("# job: evaluation of an adapter, objective Instruction")
    assert "Nothing was trained" in text
    for word in (
        "## Curves",
        "Published step",
        "Effective batch",
        "The training",
        "tokens per second",
        "steps,",
        "are trained",
    ):
        assert word not in text
        assert word not in page
    card = (evaluated[0].output / "adapter" / "README.md").read_text()
    assert "trained on" not in card
    assert "The training" not in card


def test_the_stages_are_those_of_an_evaluation(make_bench: MakeBench, trained: tuple[Bench, Report]) -> None:
    bench = evaluating(make_bench, trained)
    seen: list[str] = []
    reporter, update = bench.reporter, bench.reporter.update

    def note(**fields: Any) -> None:
        update(**fields)
        progress = reporter.snapshot().progress
        seen.append(str(progress.stage))
        assert (progress.percent, progress.total_steps) == (None, None)

    bench.reporter.update = note  # type: ignore[method-assign]
    bench.run()
    assert list(dict.fromkeys(seen)) == ["Loading", "Baseline", "Answering", "Evaluating", "Publishing"]


def test_a_gate_that_is_not_met_withholds_nothing_but_the_success(
    make_bench: MakeBench, trained: tuple[Bench, Report]
) -> None:
    gate = {"gate": {"maxEvalLoss": 0.001, "mustImprove": True}}
    bench = evaluating(make_bench, trained, evaluation=ASKED | gate)
    report = bench.run()
    assert report.outcome is Outcome.GATE_NOT_MET
    assert report.evaluation is not None
    assert (report.evaluation.gate, report.evaluation.verdict) == ("NotMet", "Better")
    assert "maxEvalLoss" in (report.evaluation.gate_message or "")
    assert find_result_faults("s3://bucket/output", bench.storage) == []


def test_an_adapter_of_another_base_is_refused_before_anything_is_loaded(
    make_bench: MakeBench, trained: tuple[Bench, Report]
) -> None:
    bench = evaluating(make_bench, trained, lineage=None, tuning={"initialAdapter": {"uri": "s3://other/adapter"}})
    other = bench.root / "other" / "adapter"
    shutil.copytree(trained[0].output / "adapter", other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "acme/other"}))
    bench.elsewhere["s3://other"] = other.parent
    with pytest.raises(TrainerError, match=r"was trained on acme/other, but spec\.model\.uri is s3://bucket/model"):
        bench.prepare()


def test_an_adapter_that_was_replaced_after_preflight_is_refused(
    make_bench: MakeBench, trained: tuple[Bench, Report]
) -> None:
    bench = evaluating(make_bench, trained, lineage=None, tuning={"initialAdapter": {"uri": "s3://other/adapter"}})
    other = Path(shutil.copytree(trained[0].output / "adapter", bench.root / "other" / "adapter"))
    bench.elsewhere["s3://other"] = other.parent
    prepared = bench.prepare()
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    with pytest.raises(TrainerError, match=r"adapter_config\.json was changed after preflight") as refused:
        bench.train(prepared)
    assert refused.value.code is ExitCode.MODEL_UNAVAILABLE
