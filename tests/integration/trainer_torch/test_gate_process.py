"""The gate's process, with a script in place of the interpreter that would load models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune_trainer.evaluation.gate_rules import ValidationResult
from finetune_trainer.merging import gate, worker_process
from finetune_trainer.merging.gate_messages import Candidate, GatePlan, GateReply
from finetune_trainer.sigterm import StopFlag

MIB = 1024**2
RESULT = ValidationResult("unquantised base", [], loss=2.0)


@pytest.fixture
def plan(tmp_path: Path) -> GatePlan:
    """A base of 1 MiB in FP32 with a vocabulary of 1024 words, and an adapter of 1 MiB."""
    base = tmp_path / "base"
    base.mkdir()
    save_file({"w": torch.zeros(MIB // 4)}, tmp_path / "adapter_model.safetensors")
    save_file({"w": torch.zeros(MIB // 4)}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"vocab_size": 1024}), encoding="utf-8")
    return GatePlan(
        base=base,
        adapter=tmp_path,
        precision="FP32",
        candidates=[Candidate(name="unquantised base", directory=tmp_path / "merged-1")],
        samples=[],
        prompts=[],
        stop_ids=[],
        max_new_tokens=1,
        tokenizer_sha256={},
        device="cpu",
    )


def run_with(script: str, plan: GatePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ValidationResult]:
    """Run the gate; the script gets `-m MODULE PLAN REPLY` as its arguments."""
    interpreter = tmp_path / "interpreter"
    interpreter.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    interpreter.chmod(0o755)
    monkeypatch.setattr(worker_process.sys, "executable", str(interpreter))
    return gate.run_gate(plan, tmp_path, lambda: None, StopFlag())


def test_the_results_are_those_that_the_process_wrote(
    plan: GatePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made.json").write_text(GateReply(results=[RESULT]).model_dump_json(), encoding="utf-8")
    assert run_with(f"cp {tmp_path}/made.json $4", plan, tmp_path, monkeypatch) == [RESULT]


@pytest.mark.parametrize("script", ["exit 12", "kill -9 $$"], ids=["out of memory", "killed by the kernel"])
def test_a_process_that_is_short_of_memory_does_not_fail_the_job(
    plan: GatePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    with pytest.raises(gate.GateNotRun, match=r"ran out of memory: raise resources\.limits\.memory"):
        run_with(script, plan, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo Traceback >&2; echo ValueError: bad >&2; exit 1", "its process failed: ValueError: bad"),
        ("exit 3", "its process failed: exit code 3"),
        ("kill -SEGV $$", "its process failed: killed by signal SIGSEGV"),
        ("exit 0", "its process failed: no reply"),
    ],
    ids=["error", "no log", "crash", "no reply"],
)
def test_a_process_that_fails_does_not_fail_the_job_and_the_reason_is_the_last_line_of_its_log(
    plan: GatePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    (tmp_path / "gate-reply.json").write_text("of an earlier run", encoding="utf-8")
    with pytest.raises(gate.GateNotRun) as caught:
        run_with(script, plan, tmp_path, monkeypatch)
    assert str(caught.value) == reason


@pytest.mark.parametrize("crash", ["exit 12", "exit 1", "kill -SEGV $$"], ids=["out of memory", "error", "crash"])
def test_a_gate_that_fails_on_the_gpu_is_run_on_the_cpu(
    plan: GatePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    (tmp_path / "made.json").write_text(GateReply(results=[RESULT]).model_dump_json(), encoding="utf-8")
    monkeypatch.setattr(gate, "_has_room_on_gpu", lambda _needed: True)
    script = f"""if grep -q '"device":"cuda"' $3; then {crash}; fi; cp {tmp_path}/made.json $4"""
    assert run_with(script, plan, tmp_path, monkeypatch) == [RESULT]


def test_the_memory_is_that_of_the_largest_model_and_of_two_distributions(plan: GatePlan, tmp_path: Path) -> None:
    kept = 2 * 512 * 1024 * 4
    adapter = 2 * (tmp_path / "adapter_model.safetensors").stat().st_size
    assert gate.needed_bytes(plan) == int(1.1 * (MIB + adapter)) + kept + 700 * MIB
    half = plan.model_copy(update={"precision": "BF16"})
    assert gate.needed_bytes(half) == int(1.1 * (MIB / 2 + adapter)) + kept + 700 * MIB
    save_file({"w": torch.zeros(MIB)}, tmp_path / "trained.safetensors")
    full = plan.model_copy(update={"adapter": None, "weights": tmp_path / "trained.safetensors", "precision": "BF16"})
    size = (tmp_path / "trained.safetensors").stat().st_size
    assert gate.needed_bytes(full) == int(1.1 * (MIB + size)) + kept + 700 * MIB
    plan.candidates[0].directory.mkdir()
    save_file({"w": torch.zeros(4 * MIB)}, plan.candidates[0].directory / "model.safetensors")
    assert gate.needed_bytes(plan) == int(1.1 * 16 * MIB) + kept + 700 * MIB


def test_a_pod_that_merges_loads_no_library_of_the_training() -> None:
    """They take a tenth of the memory in which a model is merged."""
    script = (
        "import sys, finetune_trainer.pipeline.full_model; print({'datasets', 'pandas', 'trl'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
