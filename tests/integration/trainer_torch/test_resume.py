"""A training that is stopped and resumed equals one that was not stopped: same steps, same losses, same weights."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stopped_training import renewed, stopped
from thin_slice import thin_slice
from training_bench import HYPERPARAMETERS as SINGLE
from training_bench import Bench, make_rows, preference_rows
from transformers import TrainerControl, TrainerState, TrainingArguments
from trl import DPOTrainer, KTOTrainer, SFTTrainer

from finetune_api.handoff import ExitCode, JobConfig, Outcome, Report, Stage
from finetune_trainer.distributed.world import World
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.training.callbacks import SaveCheckpoints
from finetune_trainer.training.methods import reference
from finetune_trainer.training.methods.distillation import StudentTrainer

MakeBench = Callable[..., Bench]

TIMES = {"seconds", "tokens_per_second"}
HYPERPARAMETERS: dict[str, Any] = SINGLE | {"perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 2}
"""With two batches in each step, between which a training can be stopped."""


class StopIn(Reporter):
    """Record the stages, and set the stop flag in one of them."""

    def __init__(self, stop: StopFlag, name: str | None = None) -> None:
        super().__init__("u-1")
        self.stages: list[str] = []
        self._stop, self._name = stop, name

    def set_stage(self, name: Stage) -> None:
        """Check for the stage."""
        super().set_stage(name)
        self.stages.append(name)
        if name == self._name:
            self._stop.set()


def copied(bench: Bench, root: Path) -> Bench:
    """Return the same job after its preflight, in folders of its own."""
    shutil.copytree(bench.root, root)
    return Bench(root, bench.model, bench.spec, bench.rows)


def lines(bench: Bench) -> list[dict[str, Any]]:
    """Return metrics.jsonl without times, and the steps where the run was resumed."""
    text = (bench.output / "metrics.jsonl").read_text(encoding="utf-8")
    found = [line for line in map(json.loads, text.splitlines()) if line["kind"] != "resume"]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def weights(bench: Bench) -> dict[str, torch.Tensor]:
    """Return the published tensors, by file and name."""
    paths = sorted(bench.output.rglob("*.safetensors"))
    return {
        f"{path.relative_to(bench.output)}/{name}": tensor for path in paths for name, tensor in load_file(path).items()
    }


def require_same(bench: Bench, report: Report, other: Bench, other_report: Report) -> None:
    """Assert that two results of one job are equal."""
    assert lines(bench) == lines(other)
    assert report.metrics
    assert other_report.metrics
    assert report.metrics.eval_loss == other_report.metrics.eval_loss
    assert report.metrics.best_step == other_report.metrics.best_step
    assert report.last_step == other_report.last_step
    assert report.early_stopping == other_report.early_stopping
    assert report.artifacts
    assert other_report.artifacts
    assert report.artifacts.kept_checkpoints == other_report.artifacts.kept_checkpoints
    found, expected = weights(bench), weights(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@dataclass(frozen=True)
class Case:
    """A job, and when it is stopped: a number of batches after a step."""

    method: str
    step: int
    beats: int = 0
    blocks: dict[str, Any] = field(default_factory=dict)
    rows: Callable[[int], list[dict[str, object]]] = make_rows


def few_rows(count: int) -> list[dict[str, object]]:
    """So few rows that a training passes over them several times."""
    return make_rows(count // 15)


SHORT: dict[str, Any] = {"maxSteps": 8}
DPO: dict[str, Any] = {"objective": "DPO", "evaluation": {"steps": 5}}
KTO: dict[str, Any] = {"objective": "KTO", "evaluation": {"steps": 4}, "hyperparameters": HYPERPARAMETERS | SHORT}
NOISY: dict[str, Any] = {
    "hyperparameters": HYPERPARAMETERS
    | {"neftuneNoiseAlpha": 5, "lrSchedulerType": "warmup_stable_decay", "decaySteps": 14}
}
LION: dict[str, Any] = {"hyperparameters": HYPERPARAMETERS | {"optim": "lion_32bit", "learningRate": 1e-4}}
DORA: dict[str, Any] = {"tuning": {"method": "LoRA", "lora": {"useDora": True, "loraPlusLrRatio": 4}}}
PATTERNS: dict[str, Any] = {
    "tuning": {"method": "LoRA", "lora": {"rankPattern": {"down_proj": 4}, "alphaPattern": {r"layers\.0\..*": 8}}}
}
KEEPING: dict[str, Any] = {
    "checkpoint": {"keep": 4},
    "evaluation": {"steps": 2},
    "hyperparameters": HYPERPARAMETERS | {"maxSteps": 10},
}
WHOLE: dict[str, Any] = {
    "tuning": {"method": "LoRA", "lora": {"modulesToSave": ["embed_tokens", "model.norm"], "loraPlusLrRatio": 4}}
} | KEEPING
REWARD: dict[str, Any] = {
    "objective": "RewardModel",
    "evaluation": {"steps": 4},
    "hyperparameters": HYPERPARAMETERS | SHORT,
}
RLHF: dict[str, Any] = {
    "objective": "RLHF",
    "evaluation": {"steps": 2},
    "rlhf": {"rewards": [{"type": "Regex", "pattern": "[aeiou]{2}"}], "numGenerations": 4, "maxCompletionLength": 8},
    "hyperparameters": HYPERPARAMETERS | {"maxSteps": 6},
}
DISTILLATION: dict[str, Any] = {
    "objective": "Distillation",
    "evaluation": {"steps": 2},
    "distillation": {"teacher": {"uri": "s3://bucket/model"}, "maxCompletionLength": 8},
    "hyperparameters": HYPERPARAMETERS | {"maxSteps": 6},
}
"""With QLoRA, a teacher in 16 bits differs from its 4-bit student."""
CASES = {
    "LoRA in the middle of step 8, with four kept checkpoints": Case("LoRA", 7, 1, KEEPING),
    "LoRA in the evaluation of step 15, in the second epoch": Case("LoRA", 15, 2, {"evaluation": {"steps": 5}}),
    "NEFTune and a final decay in the middle of step 8": Case("LoRA", 7, 1, NOISY),
    "Adafactor after step 7": Case("LoRA", 7, 0, {"hyperparameters": HYPERPARAMETERS | {"optim": "adafactor"}}),
    "Lion in the middle of step 8, all weights": Case("Full", 7, 1, LION),
    "DoRA with LoRA+ in the middle of step 8": Case("LoRA", 7, 1, DORA),
    "EVA after step 7": Case("LoRA", 7, 0, {"tuning": {"method": "LoRA", "lora": {"initLoraWeights": "EVA"}}}),
    "PiSSA after step 7": Case("LoRA", 7, 0, {"tuning": {"method": "LoRA", "lora": {"initLoraWeights": "PiSSA"}}}),
    "ranks and alphas of single modules after step 7": Case("LoRA", 7, 0, PATTERNS),
    "tied embeddings and a norm in full, with LoRA+, in the middle of step 8": Case("LoRA", 7, 1, WHOLE),
    "QLoRA after step 13": Case("QLoRA", 13),
    "Full at the end of the first epoch": Case("Full", 12),
    "DPO after step 9": Case("LoRA", 9, 0, DPO, preference_rows),
    "KTO after step 5": Case("LoRA", 5, 0, KTO, preference_rows),
    "a reward model after step 5": Case("LoRA", 5, 0, REWARD, preference_rows),
    "RLHF while the answers of step 4 are sampled": Case("LoRA", 3, 3, RLHF),
    "RLHF in the second pass over the prompts": Case("LoRA", 5, 0, RLHF, few_rows),
    "Distillation while the answers of step 4 are sampled": Case("QLoRA", 3, 3, DISTILLATION),
    "Distillation in the second pass over the prompts": Case("QLoRA", 4, 0, DISTILLATION, few_rows),
}


OFTEN = ("LoRA in the middle of step 8, with four kept checkpoints",)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[] if name in OFTEN else [pytest.mark.nightly]) for name, case in CASES.items()],
)
def test_a_resumed_training_ends_as_an_uninterrupted_one(make_bench: MakeBench, tmp_path: Path, case: Case) -> None:
    bench = make_bench(case.method, **{"hyperparameters": HYPERPARAMETERS} | case.blocks)
    bench.rows = case.rows(120)
    config = bench.prepare()
    other = copied(bench, tmp_path / "whole")
    expected = other.train(config)
    report = stopped(bench, config, case.step, case.beats).train(config)
    assert bench.reporter.snapshot().progress.resumed_from_step == case.step
    require_same(bench, report, other, expected)
    here, there = ({path.name for path in (one.root / "workspace").iterdir()} for one in (bench, other))
    assert here <= there  # a run that resumes needs no more room


def test_the_steps_are_in_a_checkpoint_once(make_bench: MakeBench) -> None:
    bench = make_bench("LoRA")
    stopped(bench, bench.prepare(), 6)
    saved = bench.output / "checkpoints" / "step-000006"
    assert len((saved / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) > 6
    assert json.loads((saved / "trainer_state.json").read_text(encoding="utf-8"))["log_history"] == []


def test_a_training_that_saves_no_checkpoint_has_no_list_of_its_steps_in_memory(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    train_batch = SFTTrainer.training_step

    def count(trainer: SFTTrainer, *arguments: Any, **options: Any) -> torch.Tensor:
        lengths.append(len(trainer.state.log_history))
        return train_batch(trainer, *arguments, **options)

    monkeypatch.setattr(SFTTrainer, "training_step", count)
    few = HYPERPARAMETERS | {"maxSteps": 4}
    make_bench("LoRA", checkpoint={"resumePolicy": "Never"}, hyperparameters=few, evaluation={"steps": 2}).run()
    assert max(lengths) == 0


def count_reference_batches(monkeypatch: pytest.MonkeyPatch, trainer: Any) -> list[int]:
    """Return a list that gets the size of each batch of which the trainer measures its reference."""
    measured: list[int] = []
    compute = trainer.compute_ref_log_probs

    def count(self: Any, model: Any, inputs: Any) -> Any:
        measured.append(len(inputs["input_ids"]))
        return compute(self, model, inputs)

    monkeypatch.setattr(trainer, "compute_ref_log_probs", count)
    return measured


@pytest.mark.parametrize(
    ("blocks", "trainer"), thin_slice([(DPO, DPOTrainer), (KTO, KTOTrainer)], (DPO, DPOTrainer)), ids=["DPO", "KTO"]
)
def test_a_resumed_training_does_not_run_its_reference_again(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, blocks: dict[str, Any], trainer: Any
) -> None:
    measured = count_reference_batches(monkeypatch, trainer)
    bench = make_bench("LoRA", **blocks | {"hyperparameters": HYPERPARAMETERS | {"maxSteps": 5}})
    bench.rows = preference_rows(60)
    config = bench.prepare()
    stopped(bench, config, 3)
    assert measured
    measured.clear()
    report = bench.train(config)
    assert report.resumed_from_step == 3
    assert measured == []


@pytest.fixture
def reference_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return count_reference_batches(monkeypatch, DPOTrainer)


def make_dpo(make_bench: MakeBench) -> Bench:
    bench = make_bench("LoRA", **DPO | {"hyperparameters": HYPERPARAMETERS | {"maxSteps": 3}})
    bench.rows = preference_rows(60)
    return bench


@dataclass(frozen=True)
class Whole:
    """A DPO job that is prepared; and the same without an interruption, with the number of its reference's batches."""

    bench: Bench
    config: JobConfig
    other: Bench
    report: Report
    batches: int


@pytest.fixture(scope="module")
def whole(make_bench: MakeBench, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    bench = make_dpo(make_bench)
    config = bench.prepare()
    other = copied(bench, tmp_path_factory.mktemp("uninterrupted") / "whole")
    with pytest.MonkeyPatch.context() as patch:
        measured = count_reference_batches(patch, DPOTrainer)
        return Whole(bench, config, other, other.train(config), len(measured))


@pytest.mark.parametrize("how", ["stopped in the rows", "stopped in the held-out rows", "killed"])
def test_a_run_that_ends_before_its_first_step_does_not_lose_its_reference(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference_batches: list[int], how: str
) -> None:
    bench = copied(whole.bench, tmp_path / "interrupted")
    until = whole.batches - 2 if "held-out" in how else 5

    def end(_reporter: Reporter, _done: int, _total: int) -> None:
        if len(reference_batches) == until:
            if how == "killed":
                raise SystemExit(how)
            bench.stop.set()

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "set_share", end)
        if how == "killed":
            patch.setattr(reference, "SECONDS_WORTH_STORING", -1.0)
        with pytest.raises(SystemExit if how == "killed" else Stopped):
            bench.train(whole.config)
    done = len(reference_batches)
    assert until <= done < whole.batches
    reference_batches.clear()

    report = renewed(bench).train(whole.config)
    assert report.resumed_from_step is None
    assert len(reference_batches) == whole.batches - done
    require_same(bench, report, whole.other, whole.report)
    assert list((bench.output / "checkpoints").rglob("*.*")) == []


def test_a_reference_that_was_not_stored_whole_is_measured_again(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, reference_batches: list[int]
) -> None:
    bench = make_dpo(make_bench)
    config = bench.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "set_share", lambda *_: bench.stop.set() if len(reference_batches) == 5 else None)
        with pytest.raises(Stopped):
            bench.train(config)
    stored = bench.output / "checkpoints" / "reference"
    assert {path.name for path in stored.iterdir()} == {"manifest.json", "reference.safetensors"}
    (stored / "reference.safetensors").write_bytes(b"torn")
    reference_batches.clear()
    assert renewed(bench).train(config).outcome is Outcome.PUBLISHED
    assert sum(reference_batches) == 2 * 60


@pytest.mark.nightly
def test_a_resumed_training_does_not_ask_its_teacher_again(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench("QLoRA", **DISTILLATION)
    config = bench.prepare()
    stopped(bench, config, 3)
    monkeypatch.setattr(StudentTrainer, "_ask_teacher", lambda *_: pytest.fail("it is asked again"))
    assert bench.train(config).resumed_from_step == 3


@pytest.mark.nightly
def test_patience_and_the_best_weights_outlive_two_stops(make_bench: MakeBench, tmp_path: Path) -> None:
    """The learning rate rises until the model hardly learns: on some processors a little, on others no more."""
    rate = {"learningRate": 1.0, "lrSchedulerType": "linear", "warmupSteps": 19}
    bench = make_bench(
        hyperparameters=HYPERPARAMETERS | rate,
        earlyStopping={"patience": 4, "minDelta": 0.01},
        evaluation={"steps": 1},
        checkpoint={"steps": 4},
    )
    config = bench.prepare()
    other = copied(bench, tmp_path / "whole")
    expected = other.train(config)
    assert expected.early_stopping
    best, last = expected.early_stopping.best_step or 0, expected.early_stopping.stopped_at_step or 0
    assert 0 < best <= last
    assert last > 4
    stopped(bench, config, min(best, last - 3), 3)  # within the evaluations that patience counts
    report = stopped(bench, config, last - 1, 1).train(config)
    assert bench.reporter.snapshot().progress.resumed_from_step == last - 1
    require_same(bench, report, other, expected)


@pytest.mark.nightly
def test_what_was_trained_to_the_last_step_is_not_trained_again(make_bench: MakeBench, tmp_path: Path) -> None:
    """Stop in the last evaluation, and again while the tuned model answers."""
    bench = make_bench("Full")
    config = bench.prepare()
    other = copied(bench, tmp_path / "whole")
    expected = other.train(config)
    stopped(bench, config, 20, 2)
    bench.reporter = StopIn(bench.stop, "Answering")
    with pytest.raises(Stopped):
        bench.train(config)
    pointer = bench.reporter.snapshot().checkpoint
    assert pointer
    assert pointer.step == 20
    seen = StopIn(renewed(bench).stop)
    bench.reporter = seen
    report = bench.train(config)
    assert [stage for stage in seen.stages if stage in {"Baseline", "Saving"}] == []
    assert not (bench.output / "checkpoints").exists()
    require_same(bench, report, other, expected)


CHANGED = [{"prompt": "What is the colour of coal 4?"}, {"prompt": "What is the colour of milk 9?", "expected": "milk"}]


def with_prompts(bench: Bench, config: Any, prompts: Any) -> Any:
    """Return the configuration of an attempt after the prompts were edited."""
    bench.spec["evaluation"] = bench.spec["evaluation"] | {"prompts": prompts}
    edited = bench.config()
    assert edited.config_sha256 == config.config_sha256
    return config.model_copy(update={"spec": edited.spec})


def answers(bench: Bench) -> str:
    """Return the answers before and after, as the report shows them."""
    page = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    return page.partition("## Answers before and after")[2].partition("\n## ")[0]


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_prompts_that_were_edited_are_answered_by_the_untrained_model_again(
    make_bench: MakeBench, tmp_path: Path, method: str
) -> None:
    bench = make_bench(method)
    config = bench.prepare()
    other = copied(bench, tmp_path / "whole")
    other.train(with_prompts(other, config, CHANGED))
    stopped(bench, config, 7)
    bench.train(with_prompts(bench, config, CHANGED))
    assert bench.reporter.snapshot().progress.resumed_from_step == 7
    assert "coal 4" in answers(bench)
    assert "sky 7" not in answers(bench)
    assert answers(bench) == answers(other)
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(bench).items())


def test_an_edited_prompt_with_a_wrong_pattern_ends_the_attempt_before_it_trains(make_bench: MakeBench) -> None:
    bench = make_bench(hyperparameters=HYPERPARAMETERS | SHORT)
    config = bench.prepare()
    stopped(bench, config, 7)
    wrong = with_prompts(bench, config, [{"prompt": "What is the colour of coal 4?", "expected": "("}])
    with pytest.raises(TrainerError, match=r"evaluation.prompts\[0\].expected is not a regular expression") as caught:
        bench.train(wrong)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert bench.train(config).resumed_from_step == 7  # its checkpoint is still there


class Payload:
    """A pickle that runs code when it is loaded unsafely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
EDITED = (
    "{% for m in messages %}### {{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant: {% endif %}"
)


def with_template(bench: Bench, text: str) -> Bench:
    """Set the text of the job's ConfigMap."""
    config = bench.config().model_copy(update={"config_maps": {"templates": {"ours": text}}, "is_local": True})
    bench.config = lambda *_: config  # type: ignore[method-assign]
    return bench


def test_a_checkpoint_of_another_text_of_the_chat_template_is_not_resumed_from(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    chosen = {"configMapKeyRef": {"name": "templates", "key": "ours"}}
    bench = make_bench(
        model={"uri": "s3://bucket/model", "chatTemplate": chosen},
        hyperparameters=HYPERPARAMETERS | {"maxSteps": 4},
        evaluation={"steps": 2, "prompts": []},
    )
    bench = stopped(bench, with_template(bench, TEMPLATE).prepare(), 2)
    assert (bench.output / "checkpoints/step-000002/manifest.json").exists()
    edited = with_template(Bench(tmp_path / "again", bench.model, bench.spec, bench.rows), EDITED).prepare()
    shutil.copytree(bench.output / "checkpoints", tmp_path / "again/output/checkpoints")
    with pytest.raises(TrainerError, match="its chat template differs") as caught:
        Bench(tmp_path / "again", bench.model, bench.spec, bench.rows).train(edited)
    assert caught.value.code is ExitCode.OUTPUT_CONFLICT


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_code_in_a_checkpoint_is_run(make_bench: MakeBench, tmp_path: Path, name: str) -> None:
    bench = make_bench(evaluation={"baseline": False}, dataset={"train": {"uri": "s3://bucket/data/train.jsonl"}})
    config = bench.prepare()
    stopped(bench, config, 2)
    folder = bench.output / "checkpoints" / "step-000002"
    torch.save(Payload(tmp_path / "was-run"), folder / name)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for file in manifest["files"]:
        content = (folder / file["path"]).read_bytes()
        file |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        bench.train(config)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("is_due_anywhere", [True, False])
def test_of_several_processes_the_clock_of_the_first_decides_when_to_save(is_due_anywhere: bool) -> None:
    class Second(World):
        rank, size = 1, 2

        def any_rank(self, flag: bool) -> bool:
            assert not flag  # its own clock does not count
            return is_due_anywhere

    class Overdue:
        def is_due(self, step: int) -> bool:
            return True

    checkpoints: Any = Overdue()
    control = TrainerControl()
    SaveCheckpoints(checkpoints, Second()).on_step_end(TrainingArguments(), TrainerState(max_steps=9), control)
    assert control.should_save is is_due_anywhere
