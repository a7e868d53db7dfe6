"""A job that is killed or stopped at any of its stages and writes, also twice, ends with the result of one that was
not: once, whole, and with nothing left over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interrupted import KILLED, End, kill, run_until
from published_result import find_result_faults
from safetensors.torch import load_file
from training_bench import Bench, make_rows, preference_rows

from finetune_api.handoff import Artifact, ExitCode, JobConfig, Manifest
from finetune_trainer.sigterm import StopFlag

MakeBench = Callable[..., Bench]
TIMES = {"seconds", "tokens_per_second"}
MOST = 5
"""Events of a job at which it is interrupted; they are spread over all of them."""
SHORT: dict[str, Any] = {
    "maxSteps": 6, "perDeviceTrainBatchSize": 2, "gradientAccumulationSteps": 2, "learningRate": 0.01, "maxLength": 128,
}  # fmt: skip
SPLIT: dict[str, Any] = {"train": {"uri": "s3://bucket/data/train.jsonl"}, "validationSplitPercent": 30}
CASES: dict[str, dict[str, Any]] = {
    "adapters-of-other-steps": {"method": "LoRA", "checkpoint": {"keep": 1, "steps": 1}, "evaluation": {"steps": 2}},
    "without-held-out-rows": {
        "method": "LoRA", "checkpoint": {"keep": 2, "steps": 2}, "dataset": {"train": SPLIT["train"]}, "evaluation": {},
    },
    "early-stopping": {
        "method": "QLoRA", "earlyStopping": {"patience": 1, "minDelta": 5},
        "evaluation": {"steps": 2, "answers": {"match": "Exact", "rows": 20}},
    },
    "full-model": {"method": "QLoRA", "output": {"uri": "s3://bucket/output", "merge": "FP32"}, "evaluation": {}},
    "gate-not-met": {"method": "Full", "evaluation": {"steps": 3, "gate": {"maxEvalLoss": 0.001}}},
    "DPO": {"objective": "DPO", "checkpoint": {"keep": 1}, "evaluation": {"steps": 2}},
    "RewardModel": {"objective": "RewardModel", "evaluation": {"steps": 3}},
    "RLHF": {
        "objective": "RLHF", "checkpoint": {"keep": 1}, "evaluation": {"steps": 2},
        "rlhf": {
            "rewards": [{"type": "Regex", "pattern": "[a-e]"}], "numGenerations": 4, "maxCompletionLength": 6,
        },
    },
}  # fmt: skip


def sigterm(stop: StopFlag) -> None:
    stop.set()


WAYS: list[tuple[str, list[int], End]] = [
    ("killed", [1], kill),
    ("stopped", [1], sigterm),
    ("killed twice", [1, 2], kill),
]
"""How, and by what the number of the event is divided in each interrupted run."""


def copied(bench: Bench, root: Path) -> Bench:
    """Return the job after its preflight in a folder of its own."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(bench.root, root)
    return Bench(root, bench.model, bench.spec, bench.rows)


def result_of(bench: Bench) -> dict[str, Any]:
    """Return what must be the same: weights, figures of every step, report and names of all files."""
    manifest = Manifest.model_validate_json((bench.output / Artifact.MANIFEST).read_bytes())
    lines = map(json.loads, (bench.output / Artifact.METRICS).read_text("utf-8").splitlines())
    report = manifest.result
    return {
        "weights": {
            f"{path.relative_to(bench.output)}/{name}": tensor.double().sum().item()
            for path in bench.output.rglob("*.safetensors")
            for name, tensor in load_file(path).items()
        },
        "figures": [
            {name: figure for name, figure in line.items() if name not in TIMES}
            for line in lines
            if line["kind"] != "resume"
        ],
        "report": (report.outcome, report.last_step, report.evaluation, report.early_stopping),
        "kept": report.artifacts and report.artifacts.kept_checkpoints,
        "files": sorted(
            path.relative_to(bench.output).as_posix()
            for path in bench.output.rglob("*")
            if path.is_file() and path.suffix != ".part"
        ),
    }


def find_faults(bench: Bench, config: JobConfig, expected: dict[str, Any], chosen: list[int], end: End) -> list[str]:
    """Interrupt one run after the other at these events, let another one end, and return what is wrong."""
    output, code = "s3://bucket/output", ExitCode.GATE_NOT_MET if config.spec.evaluation.gate else ExitCode.OK
    for event in chosen:
        found, _ = run_until(bench, config, event, end)
        if found not in {KILLED, ExitCode.PREEMPTED, code}:
            return [f"the interrupted run ended with {found}"]
        if (bench.output / Artifact.MANIFEST).exists() and (torn := find_result_faults(output, bench.storage)):
            return [f"the interrupted run published {torn}"]
    found, _ = run_until(bench, config)
    if found != code:
        return [f"the last run ended with {found}"]
    got = result_of(bench)
    return find_result_faults(output, bench.storage) + [name for name in expected if got[name] != expected[name]]


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_a_job_that_is_interrupted_anywhere_ends_with_the_same_result(
    make_bench: MakeBench, tmp_path: Path, case: str
) -> None:
    blocks: dict[str, Any] = {"hyperparameters": SHORT, "dataset": SPLIT} | CASES[case]
    blocks["evaluation"] = {"maxNewTokens": 4} | blocks["evaluation"]
    bench = make_bench(**blocks)
    objective = blocks.get("objective")
    bench.rows = preference_rows(70) if objective else make_rows(70)
    if objective == "RLHF":
        bench.rows = [{"prompt": row["prompt"]} for row in bench.rows]
    config = bench.prepare()
    whole = copied(bench, tmp_path / "whole")
    _, events = run_until(whole, config)
    expected, last = result_of(whole), len(events) - 1
    problems = {}
    for number in range(MOST):
        at = round(last * number / (MOST - 1))
        name, chosen, end = WAYS[number % len(WAYS)]
        again = copied(bench, tmp_path / "again")
        if faults := find_faults(again, config, expected, [at // one for one in chosen], end):
            problems[f"{name} at {events[at]}"] = faults
    assert problems == {}
