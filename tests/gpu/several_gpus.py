"""What the GPU suite measures of several GPUs: two processes against one."""

import hashlib
import io
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import training_speed
from loop_bench import make_loop
from machine import Machine
from policy_bench import prompts_of
from ranks import start_ranks
from results import Figure, try_figure
from trainer_bench import OWN
from training_bench import Bench, make_rows, make_spec

from finetune_api.handoff import JobConfig, Outcome, Report
from finetune_api.rewards import Reward
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.distributed.world import ALONE, World, join
from finetune_trainer.models.device import find_device
from finetune_trainer.models.files.tensor_files import read_local_shape
from finetune_trainer.models.loading import load_for_training, load_tokenizer
from finetune_trainer.models.memory.estimate import format_bytes
from finetune_trainer.models.resolve_settings import estimate_served
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.rewards.computed import ComputedRewards, Judge
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.tokenization.labeler import UNTRAINED, Labeler
from finetune_trainer.tokenization.samples import EncodedLabelled, EncodedPair
from finetune_trainer.training.callbacks import save_trained
from finetune_trainer.training.methods import build_trainer, traits_of
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import TrainerParts
from finetune_trainer.training.methods.rlhf import PolicyTrainer, build_rlhf_trainer

RANKS_TIMEOUT = timedelta(minutes=3)
SHARED_OUT = "shardBase"
"""What follows the method whose base is sharded."""
TOGETHER = (
    ("Chat", "LoRA"),
    ("Chat", f"LoRA, {SHARED_OUT}"),
    ("Chat", f"QLoRA, {SHARED_OUT}"),
    ("Chat", "Full"),
    ("DPO", "Full"),
    ("KTO", "LoRA"),
    ("RewardModel", "LoRA"),
)
LETTERS = ("a", "e", "i", "o", "s", "t", "[0-9]", "[A-Z]")
"""Patterns that some answers of a group have, also those of a random model."""
LARGEST_LOSS_DIFFERENCE = 0.01
"""Relative difference of the loss of two processes from that of one: rounding of 16-bit numbers."""


def measure_ranks(machine: Machine) -> Iterator[Figure]:
    """Two processes against one with the same effective batch: with DDP, on a sharded base, and with method Full; and a
    job of two whose result is measured in both."""
    if machine.ranks < 2:
        yield Figure("two GPUs", "not measured: one GPU", "the losses of one process")
        return
    yield from compare_ranks(machine)
    yield from measure_shared_result(machine)


def compare_ranks(machine: Machine) -> Iterator[Figure]:
    """Two processes against one."""
    for objective, method in TOGETHER:
        name = f"{objective}, {method} on two processes"
        yield try_figure(name, "the losses of one process", lambda one=(objective, method): _compare(machine, *one))
    required = "the held-out rewards of one process before the training, and the same weights in both after it"
    yield try_figure("GRPO on two processes", required, lambda: _compare_policies(machine))


def measure_shared_result(machine: Machine) -> Iterator[Figure]:
    """A job of two processes whose result is measured in both."""
    name = f"a job with QLoRA, {SHARED_OUT}, whose result both processes measure on the base in 16 bits"
    yield try_figure(name, "published, measured, within the estimate", lambda: _measure_together(machine))


def _compare(machine: Machine, objective: str, method: str) -> tuple[str, bool]:
    folder = machine.scratch / f"ranks-{objective}-{method}"
    folder.mkdir()
    alone = _losses(_train(machine, objective, method, folder / "one"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    arguments = (replace(machine, shapes={}), (objective, method), folder, port)
    start_ranks(_train_rank, arguments, machine.ranks, machine.start_method)
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(machine.ranks)]
    difference = max(abs(one - other) / other for one, other in zip(ranks[0]["losses"], alone, strict=True))
    peaks = ", ".join(format_bytes(one["peak"]) for one in ranks) if machine.is_gpu else "not measured"
    return f"largest difference {difference:.2%}, peak of each {peaks}", difference <= LARGEST_LOSS_DIFFERENCE


def _train(machine: Machine, objective: str, method: str, folder: Path, world: World = ALONE) -> LoopTrainer:
    """Train with four rows a step, in one batch of each process, because KTO has a divergence over the batch."""
    batch = {"per_device_train_batch_size": 4 // world.size, "global_batch_size": 4}
    settings = machine.settings(method.partition(",")[0], **batch, **OWN.get(objective, {}))
    settings = settings.model_copy(update={"shard_base": method.endswith(SHARED_OUT) or None})
    folder.mkdir()
    writes_text = traits_of(objective).writes_text
    model = load_for_training(machine.model, settings, machine.device, writes_text=writes_text, world=world)
    loop, samples = replace(make_loop(folder), world=world), _samples(machine, objective)
    trainer = build_trainer(
        objective, TrainerParts(model, load_tokenizer(machine.model), settings, loop, samples, [], folder / "scratch")
    )
    trainer.train()
    return trainer


def _losses(trainer: LoopTrainer) -> list[float]:
    return [float(one["loss"]) for one in trainer.state.log_history if "loss" in one]


def _samples(machine: Machine, objective: str) -> Sequence[Any]:
    """Return short rows; the rejected answer of a pair is that of the row before."""
    rows = training_speed.to_samples(machine.model, training_speed.short_pairs(64), machine.length)
    if objective == "Chat":
        return rows
    starts = [next(at for at, label in enumerate(row.labels) if label != UNTRAINED) for row in rows]
    prompts = [row.input_ids[:start] for row, start in zip(rows, starts, strict=True)]
    answers = [row.input_ids[start:] for row, start in zip(rows, starts, strict=True)]
    if objective == "KTO":
        return [EncodedLabelled(prompts[at], answers[at], at % 3 == 0) for at in range(len(rows))]
    return [EncodedPair(prompts[at], answers[at], answers[at - 1]) for at in range(len(rows))]


def _join(rank: int, machine: Machine, folder: Path, port: int) -> tuple[World, Machine]:
    """Join the other processes; return the machine with this process's GPU and folder."""
    size = machine.ranks
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    world = join(rank, size, (rank, size), ("127.0.0.1", port), lambda: None, timeout=RANKS_TIMEOUT)
    own = replace(machine, device=find_device(world), scratch=folder / f"scratch-{rank}")
    own.scratch.mkdir()
    return world, own


def _compare_policies(machine: Machine) -> tuple[str, bool]:
    folder = machine.scratch / "ranks-GRPO"
    folder.mkdir()
    alone = _policy(machine, ALONE, folder / "one").measure_reward()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start_ranks(_train_policy, (replace(machine, shapes={}), folder, port), machine.ranks, machine.start_method)
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(machine.ranks)]
    found, weights = ranks[0]["rewards"], [one["weights"] for one in ranks]
    equal = sum(one == other for one, other in zip(found, alone.rewards, strict=True))
    is_met = equal == len(found) and weights == weights[:1] * len(weights)
    return f"{equal} of {len(found)} held-out rewards, weights of {len(set(weights))} kinds", is_met


def _policy(machine: Machine, world: World, folder: Path) -> PolicyTrainer:
    """Return a trainer that rewards kinds of letters; each process has half of the answers of a prompt."""
    sampling = {
        "algorithm": "GRPO",
        "num_generations": 4,
        "max_completion_length": 16,
        "temperature": 1.0,
        "beta": 0.04,
    }
    whole = {"global_batch_size": 4} if world.size > 1 else {"gradient_accumulation_steps": 1, "num_generations": 2}
    settings = machine.settings("LoRA", **sampling | whole)
    folder.mkdir(exist_ok=True)
    loop = replace(make_loop(folder), world=world)
    prompts = prompts_of(machine.model)
    model = load_for_training(machine.model, settings, machine.device, world=world)
    parts = TrainerParts(model, load_tokenizer(machine.model), settings, loop, prompts, prompts, folder / "scratch")
    rewards = [Reward.model_validate({"type": "Regex", "pattern": pattern}) for pattern in LETTERS]
    judge = Judge(ComputedRewards(rewards), Labeler(machine.model).stop_id())
    return build_rlhf_trainer(parts, judge)


def _measure_together(machine: Machine) -> tuple[str, bool]:
    """Return what became of a whole job, and the peak of each process while they measured together."""
    hyper = {"maxSteps": machine.steps, "perDeviceTrainBatchSize": 2, "gradientAccumulationSteps": 1, "maxLength": 128}
    tuning = {"method": "QLoRA", "lora": {"shardBase": True}}
    place = {"gpusPerNode": machine.ranks}
    spec = make_spec(tuning=tuning, hyperparameters=hyper, resources=place, evaluation={"steps": 100})
    bench = Bench(machine.scratch / "ranks-together", machine.model, spec, make_rows(60))
    config = bench.prepare()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    arguments = (replace(machine, shapes={}), bench.root, config, port)
    start_ranks(_run_rank, arguments, machine.ranks, machine.start_method)
    report = Report.model_validate_json((bench.root / "report.json").read_text())
    shape = read_local_shape(machine.model)
    assert shape
    assert report.resolved
    estimated = estimate_served(config.spec, shape, report.resolved).total
    peaks = [int((bench.root / f"peak-{rank}").read_text()) for rank in range(machine.ranks)]
    verdict = report.evaluation.verdict if report.evaluation else None
    is_met = report.outcome is Outcome.PUBLISHED and verdict not in {None, "NotEvaluated"}
    if machine.is_gpu:
        is_met = is_met and max(peaks) <= estimated
    found = ", ".join(map(format_bytes, peaks)) if machine.is_gpu else "not measured"
    return f"{report.outcome.value}, {verdict}, peak of each {found}, estimated {format_bytes(estimated)}", is_met


def _run_rank(rank: int, machine: Machine, root: Path, config: JobConfig, port: int) -> None:
    """Run a job's training in one of several processes; write the report, and the peak of the measurement."""
    world, own = _join(rank, machine, root, port)
    from finetune_trainer.pipeline import served, train  # disables dynamo, which a plain script may use

    load = served.load_model

    def load_model(*arguments: Any) -> Any:
        own.reset_peak()
        return load(*arguments)

    served.load_model = load_model
    bench = Bench(root, own.model, config.spec.model_dump(by_alias=True, exclude_none=True))
    run = RunContext(config, bench.storage, root / f"rank-{rank}", Reporter("u-1", out=io.StringIO()), StopFlag())
    run.workspace.mkdir()
    report = train.train_distributed(run, world)
    (root / f"peak-{rank}").write_text(str(own.peak()))
    if report:
        (root / "report.json").write_text(report.model_dump_json(by_alias=True))


def _train_policy(rank: int, machine: Machine, folder: Path, port: int) -> PolicyTrainer:
    """Train in one of several processes; write the held-out rewards before it, and a digest of the weights."""
    world, own = _join(rank, machine, folder, port)
    trainer = _policy(own, world, own.scratch)
    before = trainer.measure_reward()
    trainer.train()
    save_trained(trainer.model, own.scratch / "weights.safetensors")
    weights = hashlib.sha256((own.scratch / "weights.safetensors").read_bytes()).hexdigest()
    (folder / f"rank-{rank}.json").write_text(json.dumps({"rewards": before.rewards, "weights": weights}))
    torch.distributed.barrier()  # the first process holds the others' store
    return trainer


def _train_rank(rank: int, machine: Machine, what: tuple[str, str], folder: Path, port: int) -> LoopTrainer:
    """Train an objective with a method in one of several processes, and write its losses and peak."""
    world, own = _join(rank, machine, folder, port)
    own.reset_peak()
    trainer = _train(own, *what, own.scratch / "run", world)
    (folder / f"rank-{rank}.json").write_text(json.dumps({"losses": _losses(trainer), "peak": own.peak()}))
    torch.distributed.barrier()  # the first process holds the others' store
    return trainer
