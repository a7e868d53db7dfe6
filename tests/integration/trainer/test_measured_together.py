"""QLoRA on a base that is shared out: the processes measure its result on the base in 16 bits together."""

import re
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from rank_jobs import Job, make_job, with_fault
from training_bench import HYPERPARAMETERS
from waiting import wait_until

from finetune_api.handoff import Artifact, ExitCode
from finetune_trainer.data.checks.output import read_accepted
from finetune_trainer.data.rows import Message
from finetune_trainer.distributed.rank_layout import MEASURING
from finetune_trainer.evaluation.generate import answer_all
from finetune_trainer.evaluation.logprobs import HeldOut, mean_loss
from finetune_trainer.models.loading import load_plain
from finetune_trainer.tokenization.labeler import Labeler

pytestmark = pytest.mark.timeout(1800)

PROMPTS = ["Why?", "What is the colour of sky 7?", "Who is it?"]
LOOK = """
import os, sys

if "torch" in sys.modules and "RANK" in os.environ:
    import gc

    from torch.distributed.fsdp import FSDPModule

    from finetune_trainer.pipeline import served

    load = served.load_model

    def load_model(*arguments):
        alive = sum(isinstance(one, FSDPModule) for one in gc.get_objects())
        print(f"of the trained model {alive} modules are alive", file=sys.stderr, flush=True)
        return load(*arguments)

    served.load_model = load_model
"""
FAULT = """
import os, signal, sys, time

if "torch" in sys.modules and os.environ.get("RANK") in RANKS:
    import torch

    from finetune_trainer.pipeline import served

    plain = served.restore_trained

    def restore_trained(*arguments):
        print("between both measurements", file=sys.stderr, flush=True)
        WHAT
        plain(*arguments)

    served.restore_trained = restore_trained
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
OUT_OF_MEMORY = 'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")'


class Lost(NamedTuple):
    """A fault of the second process, the place of both, and the exit codes of the pods of each attempt that it ends."""

    fault: str
    place: dict[str, int]
    ends: list[list[int]]


SMALL = """
import sys

if "torch" in sys.modules:
    from finetune_trainer.pipeline import served

    served.available_bytes = lambda: 4096
"""


def make_shared_job(s3_server: Any, bucket: str, root: Path, python: str, **gate: Any) -> Job:
    blocks: dict[str, Any] = {
        "tuning": {"method": "QLoRA", "lora": {"dropout": 0, "shardBase": True}},
        "resources": {"gpusPerNode": 2},
        "hyperparameters": HYPERPARAMETERS | {"packing": "Never", "maxSteps": 8},
        "dataset": {"train": {"uri": "s3://bucket/data/train.jsonl"}, "validationSplitPercent": 40},
        "evaluation": {
            "steps": 4,
            "maxNewTokens": 6,
            "prompts": [{"prompt": one} for one in PROMPTS],
            **gate,
        },
    }
    return make_job(s3_server, bucket, root, "QLoRA", python, **blocks)


def measuring_counts(job: Job) -> list[str]:
    uri = f"{job.config.output_key()}/{Artifact.CHECKPOINTS}"
    return [
        (job.storage.read(f"{uri}/{one.key}") or b"").decode() for one in job.storage.list(uri) if one.key == MEASURING
    ]


@pytest.mark.nightly
def test_they_find_what_one_process_finds_and_hold_half_of_it_each(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str
) -> None:
    job = make_shared_job(s3_server, "together", tmp_path, trainer_python, gate={"mustImprove": True})
    attempt = job.start("together", gpus=2, environment=with_fault(tmp_path, LOOK))
    assert attempt.codes() == [0], attempt.errors()
    found = attempt.report().evaluation
    assert found
    assert (found.verdict, found.gate) == ("Better", "Passed")
    base = load_plain(job.bench.model, torch.float32, torch.device("cpu"))
    before, answers = measure(job, base)
    adapter = tmp_path / "adapter"
    job.storage.download_folder(f"{job.config.output_key()}/{Artifact.ADAPTER}", adapter)
    after, tuned_answers = measure(job, PeftModel.from_pretrained(base, adapter))
    assert (found.before, found.after) == (pytest.approx(before, rel=2e-5), pytest.approx(after, rel=2e-5))
    text = (job.storage.read(f"{job.config.output_key()}/{Artifact.REPORT}") or b"").decode()
    for question, own, tuned in zip(PROMPTS, answers, tuned_answers, strict=True):
        shown = [f"    {answer.strip() or '(nothing)'}" for answer in (own, tuned)]
        section = text[text.index(f"    {question}\n") :].partition("### ")[0]
        assert section.split("\n\n")[2:5:2] == shown
    assert answers != tuned_answers
    log = (attempt.root / "stderr-0").read_text()
    assert re.findall(r"of the trained model (\d+) modules", log) == ["0", "0"]
    held = [
        [int(one.replace(",", "")) for one in pair] for pair in re.findall(r"holds ([\d,]+) of ([\d,]+) bytes", log)
    ]
    assert len({whole for _, whole in held}) == 2  # in 4 bits, and in the format of the computation
    assert len(held) == 4
    assert all(own == pytest.approx(whole / 2, rel=0.1) for own, whole in held)
    assert measuring_counts(job) == []


def measure(job: Job, model: Any) -> tuple[float, list[str]]:
    """Return the loss on the held-out rows and the answers to the prompts."""
    labeler = Labeler(job.bench.model)
    rows = read_accepted(job.bench.output / Artifact.VALIDATION_ROWS)
    samples = [sample for row in rows for sample in labeler.encode(row, "Instruction", 128)]  # type: ignore[union-attr]
    turns = [[Message(role="user", content=prompt)] for prompt in PROMPTS]
    answers = answer_all(model, labeler, turns, stop_ids=[labeler.stop_id()], max_new_tokens=6, on_token=lambda: None)
    return mean_loss(model, HeldOut(samples, lambda: None)), answers  # type: ignore[arg-type]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "case",
    [
        Lost(OUT_OF_MEMORY, {"gpus": 2}, [[70]]),
        Lost(OUT_OF_MEMORY, {"nodes": 2}, [[75, 70]]),
        Lost(KILLED, {"gpus": 2}, [[137], [137]]),
    ],
    ids=["memory", "memory-of-another-pod", "killed"],
)
def test_a_process_that_is_lost_in_the_middle_costs_an_attempt_or_two_and_not_the_result(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str, case: Lost
) -> None:
    """What cannot succeed is not tried again; the first process then measures alone."""
    job = make_shared_job(s3_server, f"together-{'-'.join(case.place)}-{len(case.ends)}", tmp_path, trainer_python)
    environment = with_fault(tmp_path, FAULT.replace("RANKS", '["1"]').replace("WHAT", case.fault))
    for number, codes in enumerate(case.ends):
        attempt = job.start(f"lost-{number}", environment=environment, **case.place)
        assert attempt.codes() == codes, attempt.errors()
    is_killed = case.fault == KILLED
    assert measuring_counts(job) == ["2" if is_killed else "given up"]
    if not is_killed:
        told = "rank 1 cannot measure the adapter on the base in 16 bits: CUDA out of memory"
        assert told in attempt.report(len(codes) - 1).message
    attempt = job.start("last", environment=environment, **case.place)
    assert set(attempt.codes()) == {0}, attempt.errors()
    why = "2 attempts ended while all processes measured the base in 16 bits together, and with backoffLimit 3"
    given_up = "an earlier attempt could not measure the base in 16 bits in all processes together"
    assert (why if is_killed else given_up) in (attempt.root / "stderr-0").read_text()
    assert attempt.report().evaluation.verdict == "Better"  # type: ignore[union-attr]
    assert measuring_counts(job) == []


@pytest.mark.nightly
def test_sigterm_in_the_middle_is_not_counted_and_the_next_attempt_measures(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str
) -> None:
    job = make_shared_job(s3_server, "together-stopped", tmp_path, trainer_python)
    slow = FAULT.replace("RANKS", '["0", "1"]').replace("WHAT", "time.sleep(3)")
    attempt = job.start("stopped", gpus=2, environment=with_fault(tmp_path, slow))
    wait_until(lambda: "between both measurements" in attempt.errors(), attempt.errors)
    assert measuring_counts(job) == ["1"]
    attempt.processes[0].send_signal(signal.SIGTERM)
    assert attempt.codes() == [75], attempt.errors()
    assert measuring_counts(job) == []

    attempt = job.start("last", gpus=2)
    assert attempt.codes() == [0], attempt.errors()
    assert "do not measure the result together" not in attempt.errors()
    assert attempt.report().evaluation.verdict == "Better"  # type: ignore[union-attr]


@pytest.mark.nightly
def test_a_base_that_does_not_fit_shared_out_gives_no_verdict_and_the_reason(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str
) -> None:
    job = make_shared_job(s3_server, "together-small", tmp_path, trainer_python, gate={"mustImprove": True})
    attempt = job.start("small", gpus=2, environment=with_fault(tmp_path, SMALL))
    assert attempt.codes() == [ExitCode.GATE_NOT_MET], attempt.errors()
    found = attempt.report().evaluation
    assert found
    assert (found.verdict, found.gate) == ("NotEvaluated", "NotMet")
    told = "needs 1.5 GiB on each of 2 GPUs by the estimate, and 0.00391 MiB are free"
    assert told in str(found.verdict_message)
