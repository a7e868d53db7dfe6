"""Method Full on two processes over gloo: what each of them holds."""

import io
import json
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from loop_bench import CPU, make_settings
from torch import multiprocessing
from transformers import TrainerCallback

from finetune_trainer.distributed.sharding import local_shard
from finetune_trainer.distributed.world import join
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.history import History
from finetune_trainer.models.loading import load_for_training, load_tokenizer
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.tokenization.labeler import Encoded
from finetune_trainer.training.methods.loop import LoopContext, TrainerParts
from finetune_trainer.training.methods.sft import build_sft_trainer

RANKS = 2
SAMPLES = [Encoded([1, 20 + n, 21, 22, 2], [-100, -100, 21, 22, 2], 3) for n in range(8)]


def test_between_micro_batches_each_process_holds_its_share_of_the_gradients(tiny_model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    multiprocessing.start_processes(_train, (tiny_model, tmp_path, port), RANKS, start_method="fork")
    for rank in range(RANKS):
        found = json.loads((tmp_path / f"held-{rank}.json").read_text())
        assert len(found["held"]) == 2, "one figure for each micro-batch but the last of each step"
        assert 0.4 * found["whole"] <= min(found["held"])
        assert max(found["held"]) <= 0.6 * found["whole"]


def _train(rank: int, tiny_model: Path, tmp_path: Path, port: int) -> None:
    """Train two steps of two micro-batches in this process; write the bytes of gradients held after the first ones."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    world = join(rank, RANKS, (rank, RANKS), ("127.0.0.1", port), lambda: None, timeout=timedelta(minutes=2))
    settings = make_settings("Full", total_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    model = load_for_training(tiny_model, settings, CPU, world=world)
    folder = tmp_path / f"rank-{rank}"
    folder.mkdir()
    loop = LoopContext(
        reporter=Reporter("u", out=io.StringIO()),
        stop=StopFlag(),
        history=History(folder / "metrics.jsonl"),
        plateau=Plateau(None),
        best_weights=folder / "best.safetensors",
        world=world,
    )
    tokenizer = load_tokenizer(tiny_model)
    trainer = build_sft_trainer(TrainerParts(model, tokenizer, settings, loop, SAMPLES, [], folder / "scratch"))
    held: list[int] = []

    class Measure(TrainerCallback):
        def on_substep_end(self, *_: Any, **__: Any) -> None:
            held.append(sum(_gradient_bytes(module) for module in model.modules()))

    trainer.add_callback(Measure())
    trainer.train()
    whole = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    (tmp_path / f"held-{rank}.json").write_text(json.dumps({"held": held, "whole": whole}))
    torch.distributed.barrier()  # the first process holds the others' store


def _gradient_bytes(module: torch.nn.Module) -> int:
    """Count the gradients of a sharded module: its shares, and whole ones that wait for a reduction."""
    state = getattr(module, "_get_fsdp_state", None)
    group = state()._fsdp_param_group if state else None
    total = 0
    for parameter in group.fsdp_params if group else ():
        kept = [local_shard(one) for one in (parameter.sharded_param.grad,) if one is not None]
        if parameter.unsharded_accumulated_grad is not None:
            kept.append(parameter.unsharded_accumulated_grad_data)
        if getattr(parameter, "_unsharded_param", None) is not None and parameter._unsharded_param.grad is not None:
            kept.append(parameter._unsharded_param.grad)
        total += sum(one.numel() * one.element_size() for one in kept)
    return total
