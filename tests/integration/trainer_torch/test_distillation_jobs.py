"""Whole jobs of Distillation: a teacher that is checked in preflight, learnt from, recorded and not published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loop_bench import COLOURS, teach
from published_result import find_result_faults
from training_bench import HYPERPARAMETERS, THINGS, Bench

from finetune_api.handoff import ExitCode
from finetune_trainer.commands.verify import verify_result
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.lineage import combined_sha256, digest_folder

MakeBench = Callable[..., Bench]
SETTINGS = HYPERPARAMETERS | {"lrSchedulerType": "constant", "warmupSteps": 0}
TEACHER = "s3://bucket/teacher"


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with one of four colours."""
    return teach(tiny_model, tmp_path_factory.mktemp("taught") / "model", steps=60)


@pytest.fixture(scope="module")
def red(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows one of the colours alone."""
    return teach(tiny_model, tmp_path_factory.mktemp("red") / "model", steps=60, colours=COLOURS[:1])


def make_job(make_bench: MakeBench, model: Path, teacher: Path, method: str = "LoRA", **blocks: Any) -> Bench:
    job = {
        "objective": "Distillation",
        "distillation": {"teacher": {"uri": TEACHER}, "maxCompletionLength": 10},
        "hyperparameters": SETTINGS,
        "evaluation": {"steps": 10, "prompts": [{"prompt": "What is the colour of sky?"}], "maxNewTokens": 8},
    }
    bench = make_bench(method, **(job | blocks))
    bench.model, bench.elsewhere = model, {TEACHER: teacher}
    bench.rows = [{"prompt": f"What is the colour of {THINGS[n % 8]}? {'?' * (n // 8)}"} for n in range(60)]
    return bench


def refused(bench: Bench) -> TrainerError:
    """Return the error of preflight."""
    with pytest.raises(TrainerError) as caught:
        bench.prepare()
    return caught.value


def test_a_gate_after_qlora_may_have_a_teacher_that_is_shared_out(
    make_bench: MakeBench, taught: Path, red: Path
) -> None:
    distillation = {"teacher": {"uri": TEACHER}, "shardTeacher": True}
    blocks = {"distillation": distillation, "resources": {"gpusPerNode": 2}}
    gated = blocks | {"evaluation": {"gate": {"mustImprove": True}}}
    resolved = make_job(make_bench, taught, red, "QLoRA", **gated).prepare().resolved
    assert resolved
    assert resolved.shard_teacher


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("method", ["QLoRA", pytest.param("Full", marks=pytest.mark.nightly)])
def test_a_student_is_better_than_its_base_and_its_teacher_is_recorded_but_not_published(
    make_bench: MakeBench, taught: Path, red: Path, method: str
) -> None:
    rate = SETTINGS | ({"learningRate": 1e-3} if method == "Full" else {})
    bench = make_job(make_bench, taught, red, method, hyperparameters=rate)
    report = bench.run()
    assert report.evaluation
    assert report.evaluation.verdict == "Better"
    assert report.metrics
    assert (report.metrics.eval_loss or 9) < (report.metrics.baseline_eval_loss or 0) / 2
    assert not find_result_faults("s3://bucket/output", bench.storage)
    lineage = json.loads((bench.output / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["teacher"]["sha256"] == combined_sha256(digest_folder(red))
    assert lineage["teacher"]["uri"] == TEACHER
    assert report.lineage
    assert report.lineage.teacher_sha256 == lineage["teacher"]["sha256"]
    chain = verify_result("s3://bucket/output", bench.storage).chain
    assert [(one.role, one.uri) for one in chain] == [("base", "s3://bucket/model"), ("teacher", TEACHER)]
    events = (bench.output / "openlineage.jsonl").read_text(encoding="utf-8").splitlines()
    assert "teacher" in [one["name"] for one in json.loads(events[0])["inputs"]]
    weights = [path.relative_to(bench.output).parts[0] for path in bench.output.rglob("*.safetensors")]
    assert set(weights) == {"merged" if method == "Full" else "adapter"}
    page = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "divergence of the model's probabilities from the teacher's" in page
    assert "erplexity" not in page
    assert "only the prompts are used" in page
    assert f"- teacher: `{TEACHER}`" in page


def test_a_gate_can_ask_for_a_divergence(make_bench: MakeBench, taught: Path, red: Path) -> None:
    evaluation = {"steps": 10, "gate": {"maxEvalLoss": 1e-6, "mustImprove": True}}
    bench = make_job(make_bench, taught, red, evaluation=evaluation)
    report = bench.run()
    assert report.evaluation
    assert report.evaluation.gate == "NotMet"


def test_a_teacher_with_other_tokens_is_refused_before_a_gpu_is_held(
    make_bench: MakeBench, taught: Path, red: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(red, tmp_path / "other")

    def swap(content: dict[str, Any]) -> None:
        words = content["model"]["vocab"]
        words["a"], words["b"] = words["b"], words["a"]

    change_json(other / "tokenizer.json", swap)
    error = refused(make_job(make_bench, taught, other))
    assert error.code is ExitCode.INVALID_CONFIG
    assert f"spec.distillation.teacher {TEACHER} has another vocabulary" in error.message
    assert "than spec.model s3://bucket/model" in error.message
    assert "is 'a' there and 'b' here" in error.message or "is 'b' there and 'a' here" in error.message


def test_a_teacher_with_another_number_of_tokens_is_refused(
    make_bench: MakeBench, taught: Path, red: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(red, tmp_path / "other")
    change_json(other / "config.json", lambda config: config.update(vocab_size=config["vocab_size"] + 64))
    error = refused(make_job(make_bench, taught, other))
    assert error.code is ExitCode.INVALID_CONFIG
    assert f"teacher {TEACHER} has a vocab_size of" in error.message


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (shutil.rmtree, "correct spec.distillation.teacher.uri"),
        (
            lambda folder: change_json(folder / "config.json", lambda one: one.update(auto_map={"AutoModel": "x.Y"})),
            "requires remote code",
        ),
        (
            lambda folder: change_json(
                folder / "config.json", lambda one: one.update(architectures=["NoModel"], model_type="none")
            ),
            "config.json of spec.distillation.teacher names NoModel",
        ),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_refused(
    make_bench: MakeBench, taught: Path, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    other = shutil.copytree(taught, tmp_path / "other")
    spoil(other)
    assert told in refused(make_job(make_bench, taught, other)).message


def test_a_teacher_that_was_changed_after_preflight_is_refused(
    make_bench: MakeBench, taught: Path, red: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(red, tmp_path / "other")
    bench = make_job(make_bench, taught, other)
    config = bench.prepare()
    change_json(other / "config.json", lambda one: one.update(rope_theta=5e5))
    with pytest.raises(TrainerError, match=rf"{TEACHER}: config.json was changed after preflight"):
        bench.train(config)


def test_a_teacher_counts_in_the_memory_estimate(make_bench: MakeBench, taught: Path, red: Path) -> None:
    alone = make_bench("LoRA").prepare().resolved
    taught_too = make_job(make_bench, taught, red, hyperparameters=SETTINGS).prepare().resolved
    assert alone
    assert taught_too
    weights = (red / "model.safetensors").stat().st_size
    more = (taught_too.estimated_gpu_memory_bytes or 0) - (alone.estimated_gpu_memory_bytes or 0)
    assert more > weights / 2 * 0.9
