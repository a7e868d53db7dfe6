"""Several training processes, in one pod or two: same result as one process, joint stops, and no process is left."""

import itertools
import json
import os
import re
import signal
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from graders import grading, respond_with_lengths, send
from listening import beyond_loopback, listening
from preloaded import fork_of
from published_result import find_result_faults
from rank_jobs import (
    Job,
    alone_from_checkpoint,
    checkpoint_step,
    figures,
    make_job,
    require_as_alone,
    slowly,
    weights,
    with_fault,
)
from training_bench import HYPERPARAMETERS
from waiting import wait_until

from finetune_api.handoff import (
    Artifact,
    Outcome,
)
from finetune_trainer.distributed.world import World, unshard

pytestmark = pytest.mark.timeout(1800)


@pytest.mark.nightly
def test_pods_stop_together_lose_each_other_and_end_as_one_pod_and_as_one_process(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str
) -> None:
    """Compare two processes in one pod with two pods, of which one is stopped and later one is killed."""
    whole = make_job(s3_server, "ranks-whole", tmp_path, "LoRA", trainer_python)
    attempt = whole.start("one-pod", gpus=2)
    assert attempt.codes() == [0], attempt.errors()
    report = attempt.report()
    assert report.outcome is Outcome.PUBLISHED
    assert report.resolved
    assert (report.resolved.per_device_train_batch_size, report.resolved.gradient_accumulation_steps) == (4, 1)
    assert report.resolved.global_batch_size == 8
    require_as_alone(whole, report)

    job = make_job(s3_server, "ranks-pods", tmp_path, "LoRA", trainer_python)
    attempt = job.start("stopped", nodes=2, environment=slowly(tmp_path))
    attempt.wait_for_step(2)
    attempt.processes[1].send_signal(signal.SIGTERM)
    assert attempt.codes() == [75, 75], attempt.errors()
    first, second = attempt.report(0), attempt.report(1)
    assert (first.reason, second.reason) == ("PeerLost", "Preempted")
    assert first.checkpoint
    assert first.checkpoint.step == first.last_step == checkpoint_step(job)
    assert 2 <= first.checkpoint.step < 12

    attempt = job.start("killed", nodes=2, environment=slowly(tmp_path))
    attempt.wait_for_step(first.checkpoint.step + 1)
    (rank,) = attempt.ranks(1)
    os.kill(rank, signal.SIGKILL)
    assert attempt.codes() == [75, 137], attempt.errors()
    lost, culprit = attempt.report(0), attempt.report(1)
    assert (lost.outcome, lost.reason) == (Outcome.PREEMPTED, "PeerLost")
    assert "pod 1 of this attempt ended with exit code 137" in lost.message
    assert (culprit.outcome, culprit.reason) == (Outcome.FAILED, "ContainerError")

    attempt = job.start("last", nodes=2)
    assert attempt.codes() == [0, 0], attempt.errors()
    assert attempt.report(0).resumed_from_step
    (told,) = attempt.report(0).stopped_runs or []  # the kill is a failure, which a Job counts
    assert (told.pod_uid, told.last_step) == ("uid-stopped-0", first.last_step)
    assert attempt.report(1).artifacts is None
    assert find_result_faults(job.config.output_key(), job.storage) == []
    assert [line.get("loss") for line in figures(job)] == [line.get("loss") for line in figures(whole)]
    found, expected = weights(job), weights(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


PLACES: list[dict[str, int]] = [{}, {"gpus": 2}, {"nodes": 2}]


@pytest.mark.nightly
@pytest.mark.parametrize("place", PLACES, ids=["one-process", "one-pod", "two-pods"])
def test_only_the_progress_port_listens_beyond_the_address_of_the_pod(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str, place: dict[str, int]
) -> None:
    """The pods' address is that of loopback, so that every socket beyond it is one that the pod should not have."""
    bucket = f"ranks-ports-{'-'.join(place) or 'process'}"
    long = HYPERPARAMETERS | {"packing": "Never", "maxSteps": 5000}  # it is stopped
    job = make_job(s3_server, bucket, tmp_path, "LoRA", trainer_python, hyperparameters=long)
    attempt = job.start("ports", **place)
    attempt.wait_for_step(2)
    for pod, port in enumerate(attempt.ports):
        processes = attempt.all_processes(pod)
        assert {found for _, found in beyond_loopback(processes)} == {port}
        assert (len(listening(processes)) > 1) == bool(place)  # several processes have a store, and gloo
    attempt.processes[0].send_signal(signal.SIGTERM)
    assert set(attempt.codes()) == {75}, attempt.errors()


def require_shared_out_moments(job: Job) -> None:
    """Each process uploaded its half of the optimiser's two moments of every weight."""
    folder = f"{job.config.output_key()}/{Artifact.CHECKPOINTS}/step-{checkpoint_step(job):06d}"
    sizes = {entry.key: entry.size for entry in job.storage.list(folder)}
    shards = [size for name, size in sizes.items() if name.startswith("optimizer/")]
    assert len(shards) == 2, sizes
    assert max(shards) < 1.1 * sizes["weights.safetensors"]
    assert "optimizer.pt" not in sizes


@pytest.mark.nightly
def test_a_checkpoint_of_one_process_is_resumed_by_two(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str
) -> None:
    job = make_job(s3_server, "ranks-one-two", tmp_path, "Full", trainer_python)
    attempt = job.start("one", environment=slowly(tmp_path))
    attempt.wait_for_step(2)
    attempt.processes[0].send_signal(signal.SIGTERM)
    assert attempt.codes() == [75], attempt.errors()
    stopped = attempt.report()

    attempt = job.start("two", gpus=2)
    assert attempt.codes() == [0], attempt.errors()
    assert attempt.report().resumed_from_step == stopped.last_step
    require_as_alone(job, attempt.report())


@pytest.mark.nightly
def test_shared_out_weights_are_stopped_resumed_and_put_together_again(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str
) -> None:
    job = make_job(s3_server, "ranks-full", tmp_path, "Full", trainer_python)
    attempt = job.start("stopped", gpus=2, environment=slowly(tmp_path))
    attempt.wait_for_step(2)
    attempt.processes[0].send_signal(signal.SIGTERM)
    assert attempt.codes() == [75], attempt.errors()
    stopped = attempt.report()
    assert stopped.reason == "Preempted"
    assert stopped.last_step == checkpoint_step(job)
    require_shared_out_moments(job)
    alone = alone_from_checkpoint(job)

    attempt = job.start("last", gpus=2)
    assert attempt.codes() == [0], attempt.errors()
    last = attempt.report()
    assert last.resumed_from_step == alone.resumed_from_step == stopped.last_step
    assert last.metrics
    assert alone.metrics
    assert alone.metrics.eval_loss == pytest.approx(last.metrics.eval_loss, rel=2e-3)
    assert re.search(r"holds [\d,]+ of [\d,]+ bytes of weights", attempt.errors())
    require_as_alone(job, last)


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_an_adapter_on_a_shared_out_base_is_stopped_resumed_merged_and_published_as_by_one_process(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str, method: str
) -> None:
    bucket = f"ranks-shared-{method.lower()}"
    blocks: dict[str, Any] = {
        "tuning": {"method": method, "lora": {"dropout": 0, "shardBase": True}},
        "resources": {"gpusPerNode": 2},
        "output": {"uri": f"s3://{bucket}/output", "merge": "FP32"},
        "checkpoint": {"steps": 2, "keep": 2},
        "evaluation": {"steps": 3, "maxNewTokens": 8, "prompts": [{"prompt": "Why is the sky blue?"}]},
    }
    job = make_job(s3_server, bucket, tmp_path, method, trainer_python, **blocks)
    attempt = job.start("stopped", gpus=2, environment=slowly(tmp_path))
    attempt.wait_for_step(2)
    attempt.processes[0].send_signal(signal.SIGTERM)
    assert attempt.codes() == [75], attempt.errors()
    stopped = attempt.report()
    assert stopped.last_step == checkpoint_step(job)
    alone = alone_from_checkpoint(job)

    attempt = job.start("last", nodes=2)
    assert attempt.codes() == [0, 0], attempt.errors()
    last = attempt.report()
    assert last.resumed_from_step == alone.resumed_from_step == stopped.last_step
    assert last.evaluation
    assert last.evaluation.merge_gate == "Passed"
    held, whole = re.search(r"holds ([\d,]+) of ([\d,]+) bytes of weights", attempt.errors()).groups()
    assert int(held.replace(",", "")) == pytest.approx(int(whole.replace(",", "")) / 2, rel=0.1)
    require_as_alone(job, last)


@pytest.mark.nightly
@pytest.mark.parametrize("objective", ["Instruction", "DPO"])
def test_other_ways_to_train_end_as_one_process(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str, objective: str
) -> None:
    """Packed rows on a quantised base, and pairs against a reference; each ends with a full model."""
    method = "LoRA" if objective == "DPO" else "QLoRA"
    bucket = f"ranks-{method.lower()}"
    output = {"uri": f"s3://{bucket}/output", "merge": "FP32"}
    blocks: dict[str, Any] = {"evaluation": {"steps": 6}, "output": output}
    if objective == "DPO":
        blocks["objective"] = objective
    else:
        packed = {"packing": "Always", "perDeviceTrainBatchSize": 2, "maxSteps": 12}
        blocks["hyperparameters"] = HYPERPARAMETERS | packed
    job = make_job(s3_server, bucket, tmp_path, method, trainer_python, **blocks)
    attempt = job.start("one-pod", gpus=2)
    assert attempt.codes() == [0], attempt.errors()
    report = attempt.report()
    assert report.evaluation
    assert report.evaluation.merge_gate == "Passed"
    require_as_alone(job, report)


JUDGED = ("eval_loss", "reward_margin", "reward_accuracy")


@pytest.mark.nightly
@pytest.mark.parametrize(
    "case",
    [
        ("KTO", "QLoRA"),
        ("RewardModel", "QLoRA"),
        ("RewardModel", "QLoRA, shared out"),
        ("DPO", "Full"),
        ("KTO", "Full"),
        ("RewardModel", "Full"),
    ],
    ids="-".join,
)
def test_judged_answers_are_trained_on_stopped_and_resumed_by_one_process_and_by_two(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str, case: tuple[str, str]
) -> None:
    """KTO with QLoRA ends with a full model. After QLoRA, the first process measures the result as it is served, or
    both if they share the base."""
    objective, (method, _, shares) = case[0], case[1].partition(", ")
    bucket = f"ranks-{objective}-{method}-{bool(shares)}".lower()
    merges = case == ("KTO", "QLoRA")
    output = {"uri": f"s3://{bucket}/output", "merge": "FP32" if merges else "None"}
    # One process has these rows in one batch, as two have them together: over it KTO measures its divergence.
    rows = HYPERPARAMETERS | {"perDeviceTrainBatchSize": 8, "gradientAccumulationSteps": 1, "maxSteps": 12}
    blocks = {"objective": objective, "evaluation": {"steps": 6}, "output": output, "hyperparameters": rows}
    if shares:
        blocks["tuning"] = {"method": method, "lora": {"dropout": 0, "shardBase": True}}
        blocks["resources"] = {"gpusPerNode": 2}
        rows["perDeviceTrainBatchSize"] = 4
    job = make_job(s3_server, bucket, tmp_path, method, trainer_python, **blocks)
    attempt = job.start("stopped", gpus=2, environment=slowly(tmp_path))
    attempt.wait_for_step(2)
    attempt.processes[0].send_signal(signal.SIGTERM)
    assert attempt.codes() == [75], attempt.errors()
    step = attempt.report().last_step
    assert step == checkpoint_step(job)
    if method == "Full":
        require_shared_out_moments(job)
    alone = alone_from_checkpoint(job)

    attempt = job.start("last", gpus=2)
    assert attempt.codes() == [0], attempt.errors()
    last = attempt.report()
    assert last.resumed_from_step == alone.resumed_from_step == step
    assert last.metrics
    assert last.evaluation
    assert alone.metrics
    assert "not measured as it will be served" not in attempt.errors()
    assert (last.evaluation.merge_gate == "Passed") == (merges or (method == "Full" and objective != "RewardModel"))
    found, expected = (one.model_dump(include=set(JUDGED), exclude_none=True) for one in (last.metrics, alone.metrics))
    assert found == pytest.approx(expected, rel=5e-3)
    require_as_alone(job, last)


def policy_blocks(*rewards: dict[str, Any]) -> dict[str, Any]:
    """A step is one group of answers, half of it in each process."""
    rlhf = {"numGenerations": 8, "maxCompletionLength": 6, "rewards": list(rewards)}
    return {"objective": "RLHF", "rlhf": rlhf, "evaluation": {"steps": 4, "maxNewTokens": 4}}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["LoRA", "shared", "Full"])
def test_a_policy_is_stopped_while_it_samples_and_resumed_by_another_number_of_processes(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str, kind: str
) -> None:
    """Also if each process has a share of its base, or of its weights and its reference."""
    blocks = policy_blocks({"type": "Regex", "pattern": "[a-e]"}) | {"resources": {"gpusPerNode": 2}}
    method = "Full" if kind == "Full" else "LoRA"
    if method == "LoRA":
        blocks["tuning"] = {"method": method, "lora": {"dropout": 0, "shardBase": kind == "shared"}}
    job = make_job(s3_server, f"ranks-policy-{kind}".lower(), tmp_path, method, trainer_python, **blocks)
    attempt = job.start("stopped", nodes=2, environment=slowly(tmp_path))
    attempt.wait_for_step(2)
    attempt.processes[1].send_signal(signal.SIGTERM)
    assert attempt.codes() == [75, 75], attempt.errors()
    stopped = attempt.report()
    assert stopped.reason == "PeerLost"
    assert stopped.checkpoint
    assert stopped.checkpoint.step == stopped.last_step == checkpoint_step(job)
    assert alone_from_checkpoint(job).resumed_from_step == stopped.last_step

    attempt = job.start("last", gpus=2)
    assert attempt.codes() == [0], attempt.errors()
    report = attempt.report()
    assert report.resumed_from_step == stopped.last_step
    lines = figures(job)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    held_out = {line["step"]: line["reward"] for line in lines if line["kind"] == "eval"}
    assert sorted(held_out) == [0, 4, 8, 12]
    assert report.metrics
    assert report.metrics.baseline_eval_reward == pytest.approx(held_out[0])
    assert report.metrics.best_step == max((4, 8, 12), key=lambda step: held_out[step])
    assert find_result_faults(job.config.output_key(), job.storage) == []


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["QLoRA", "QLoRA, shared out", "Full"])
def test_a_student_is_stopped_while_it_samples_and_resumed_by_another_number_of_processes(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str, kind: str
) -> None:
    """Each has a share of the teacher, whose answers no process samples again, also for the measurement on the base in
    16 bits."""
    method, _, shares = kind.partition(", ")
    bucket = f"ranks-student-{method}-{bool(shares)}".lower()
    teacher = {"uri": f"s3://{bucket}/teacher"}
    blocks = {
        "objective": "Distillation",
        "distillation": {"teacher": teacher, "maxCompletionLength": 6, "shardTeacher": True},
        "resources": {"gpusPerNode": 2},
        "evaluation": {"steps": 4, "maxNewTokens": 4},
    }
    if shares:
        blocks["tuning"] = {"method": method, "lora": {"dropout": 0, "shardBase": True}}
    job = make_job(s3_server, bucket, tmp_path, method, trainer_python, **blocks)
    attempt = job.start("stopped", nodes=2, environment=slowly(tmp_path))
    attempt.wait_for_step(2)
    attempt.processes[1].send_signal(signal.SIGTERM)
    assert attempt.codes() == [75, 75], attempt.errors()
    stopped = attempt.report()
    assert stopped.checkpoint
    assert stopped.checkpoint.step == stopped.last_step == checkpoint_step(job)

    attempt = job.start("last", gpus=2)
    assert attempt.codes() == [0], attempt.errors()
    report = attempt.report()
    assert report.resumed_from_step == stopped.last_step
    lines = figures(job)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    held_out = {line["step"]: line["loss"] for line in lines if line["kind"] == "eval"}
    assert sorted(held_out) == [0, 4, 8, 12]
    assert min(held_out.values()) < held_out[0]
    lineage = json.loads(job.storage.read(f"{job.config.output_key()}/{Artifact.LINEAGE}") or b"")
    assert set(lineage["teacher"]["files"]) > {"model.safetensors", "tokenizer.json"}
    text = (job.storage.read(f"{job.config.output_key()}/{Artifact.REPORT}") or b"").decode()
    assert ("as served (16-bit base)" in text) == (method == "QLoRA")
    assert "do not measure the result together" not in attempt.errors()
    assert find_result_faults(job.config.output_key(), job.storage) == []


@pytest.mark.nightly
@pytest.mark.parametrize("shares", [False, True], ids=["after-they-have-parted", "together"])
def test_a_policy_on_a_quantised_base_is_measured_by_the_processes_as_it_is_served(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str, shares: bool
) -> None:
    """Alone, the own batch of the process that measures is half of a group."""
    blocks = policy_blocks({"type": "Regex", "pattern": "[a-e]"}) | {"resources": {"gpusPerNode": 2}}
    blocks["tuning"] = {"method": "QLoRA", "lora": {"dropout": 0, "shardBase": shares}}
    blocks["hyperparameters"] = HYPERPARAMETERS | {"maxSteps": 4}
    job = make_job(s3_server, f"ranks-served-{shares}".lower(), tmp_path, "QLoRA", trainer_python, **blocks)
    attempt = job.start("quantised", gpus=2)
    assert attempt.codes() == [0], attempt.errors()
    text = (job.storage.read(f"{job.config.output_key()}/{Artifact.REPORT}") or b"").decode()
    assert "as served (16-bit base)" in text


WITHOUT_RETRIES = """
import sys

if "torch" in sys.modules:
    from finetune_trainer.rewards import service

    service.RETRY_SECONDS = 0.0
"""


@pytest.mark.nightly
@pytest.mark.parametrize("pods", [1, 2])
def test_a_reward_server_that_fails_for_one_process_ends_the_attempt_with_its_reason(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str, pods: int
) -> None:
    """One request fails, which is of one process; the other one waits for it."""
    asked = itertools.count()

    def respond(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if next(asked) == 12:
            send(handler, b"out of memory", 500)
        else:
            respond_with_lengths(handler, body)

    with grading() as server:
        server.respond = respond
        blocks = policy_blocks({"type": "Service", "service": {"endpoint": server.endpoint}})
        job = make_job(s3_server, f"ranks-graded-{pods}", tmp_path, "LoRA", trainer_python, **blocks)
        attempt = job.start("fails", nodes=pods, gpus=2 // pods, environment=with_fault(tmp_path, WITHOUT_RETRIES))
        codes = attempt.codes()
    assert sorted(codes) == [75, 81][-pods:], attempt.errors()
    report = attempt.report(codes.index(81))
    assert report.reason == "RewardUnavailable"
    assert "responded with 500 (out of memory)" in report.message


OUT_OF_MEMORY_ON_RANK_1 = """
import os

if os.environ.get("RANK") == "1":
    import torch

    plain = torch.nn.functional.embedding

    def embedding(rows, *arguments, **options):
        if torch.is_grad_enabled() and len(rows) > LIMIT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(rows, *arguments, **options)

    torch.nn.functional.embedding = embedding
"""


@pytest.mark.nightly
@pytest.mark.parametrize("pods", [1, 2])
def test_if_one_process_runs_out_of_memory_all_train_with_half_the_micro_batch(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str, pods: int
) -> None:
    job = make_job(s3_server, f"ranks-memory-{pods}", tmp_path, "LoRA", trainer_python)
    fault = with_fault(tmp_path, OUT_OF_MEMORY_ON_RANK_1.replace("LIMIT", "2"))
    attempt = job.start("starved", nodes=pods, gpus=2 // pods, environment=fault)
    assert attempt.codes() == [0] * pods, attempt.errors()
    logs = [(attempt.root / f"stderr-{pod}").read_text() for pod in range(pods)]
    assert "rank 1 is out of GPU memory with 4 rows per batch" in logs[-1]
    assert [log.count("all 2 processes start again with 2 rows per batch") for log in logs] == [1] * pods
    report = attempt.report()
    assert report.resolved
    assert (report.resolved.per_device_train_batch_size, report.resolved.gradient_accumulation_steps) == (2, 2)
    require_as_alone(job, report)


def test_a_stop_within_a_second_of_the_start_is_a_stop(s3_server: Any, tmp_path: Path, aws_environment: None) -> None:
    """A process without a handler yet is ended by the signal, which does not count as a failure."""
    attempt = make_job(s3_server, "ranks-early", tmp_path, "LoRA", sys.executable).start("early", gpus=2)
    wait_until(lambda: len(attempt.ranks(0)) == 2, attempt.errors, pause=0.01)
    attempt.processes[0].send_signal(signal.SIGTERM)
    assert attempt.codes() == [75], attempt.errors()
    assert attempt.report().reason == "Preempted"


SLOW_LOAD_OF_RANK_1 = """
import os

if os.environ.get("RANK") == "1":
    import time
    from finetune_trainer.pipeline import train

    plain = train.load_model

    def load_model(*arguments):
        time.sleep(15)
        return plain(*arguments)

    train.load_model = load_model
"""


@pytest.mark.nightly
def test_a_process_that_hangs_ends_the_attempt_with_the_stacks_of_all(
    s3_server: Any, tmp_path: Path, aws_environment: None, trainer_python: str
) -> None:
    """One that loads the model for longer than the time-out does not hang."""
    job = make_job(s3_server, "ranks-hang", tmp_path, "LoRA", trainer_python)
    attempt = job.start("hangs", gpus=2, timeout=10, environment=with_fault(tmp_path, SLOW_LOAD_OF_RANK_1))
    attempt.wait_for_step(1)
    hanging = fork_of(trainer_python, attempt.ranks(0)[1])
    os.kill(hanging, signal.SIGSTOP)
    wait_until(lambda: "the stacks of rank 1 follow" in attempt.errors(), attempt.errors)
    os.kill(hanging, signal.SIGCONT)  # a stopped process writes its stacks first when it continues
    assert attempt.codes() == [70], attempt.errors()
    message = attempt.report().message
    assert "rank 0 waited for the other processes for resources.collectiveTimeoutSeconds (10)" in message
    log = (attempt.root / "stderr-0").read_text()
    assert re.search(r"Thread 0x\w+ \(most recent call first\):\n  File .*\n", log), log
    assert re.search(r"entrypoints/rank\.py\", line \d+ in train_rank", log), log


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_is_dealt_out_is_put_together_in_its_order(count: int, size: int) -> None:
    shares = []
    for rank in range(size):
        world = World()
        world.rank, world.size = rank, size
        dealt = list(world.shard([float(one) for one in range(count)]))
        assert sum(is_counted for _, is_counted in dealt) == len(range(rank, count, size))
        shares.append(torch.tensor([[one] for one, _ in dealt]))
    assert len({len(share) for share in shares}) == 1
    assert unshard(shares, count).flatten().tolist() == list(range(count))
