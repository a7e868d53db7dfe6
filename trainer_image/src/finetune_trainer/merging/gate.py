"""The gate before publishing: runs its process if the memory suffices, and reads the results."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from finetune_api.handoff import ADAPTER_WEIGHTS
from finetune_trainer.evaluation.gate_rules import ValidationResult
from finetune_trainer.evaluation.logprobs import COMPARED_TOKENS
from finetune_trainer.merging.gate_messages import OUT_OF_MEMORY, GatePlan, GateReply
from finetune_trainer.merging.worker_process import Ended, Watch, run_module
from finetune_trainer.models.files.base_model import read_config
from finetune_trainer.models.files.tensor_files import total_bytes
from finetune_trainer.models.loading import DTYPES
from finetune_trainer.monitoring.host_memory import available_bytes
from finetune_trainer.sigterm import StopFlag

logger = logging.getLogger(__name__)

WORKER = "finetune_trainer.merging.gate_worker"
OWN_BYTES = 700 * 1024**2
"""Memory of the process without a model: the libraries."""
LARGE_VOCABULARY = 262_144
HEADROOM = 1.1
KILLED = -9
SHORT = frozenset({KILLED, OUT_OF_MEMORY})


class GateNotRun(Exception):  # noqa: N818 - an outcome for the report, not an error
    """The gate cannot run on this machine; the message gives the reason."""


def run_gate(plan: GatePlan, workspace: Path, on_work: Callable[[], None], stop: StopFlag) -> list[ValidationResult]:
    """Return the results of the gate's process; raises GateNotRun. If it fails on the GPU, the CPU is tried."""
    needed = require_memory(plan)
    ended, reply, watch = Ended(KILLED, ""), workspace / "gate-reply.json", Watch(workspace, on_work, stop)
    for device in ("cuda", "cpu") if _has_room_on_gpu(needed) else ("cpu",):
        ended = run_module(WORKER, plan.model_copy(update={"device": device}), reply, watch)
        if ended.code == 0 and reply.is_file():
            return GateReply.model_validate_json(reply.read_bytes()).results
        logger.error("the gate's process exited with %s on device %s; the end of its log:", ended.code, device)
        for line in ended.log.splitlines():
            logger.error("    %s", line)
    if ended.code in SHORT:
        raise GateNotRun("its process ran out of memory: raise resources.limits.memory")
    raise GateNotRun(f"its process failed: {ended.cause}")


def require_memory(plan: GatePlan) -> int:
    """Return the bytes that the gate needs for one model at a time; raises GateNotRun if they are not free."""
    needed, free = needed_bytes(plan), available_bytes()
    if needed > free:
        raise GateNotRun(
            f"loading one model at a time takes {format_size(needed)} of memory, and {format_size(free)} are free: "
            "raise resources.limits.memory"
        )
    return needed


def needed_bytes(plan: GatePlan) -> int:
    """Return the memory of the largest model (one is loaded at a time) and of the kept log-probabilities."""
    width = DTYPES[plan.precision].itemsize
    source = total_bytes(plan.base, DTYPES["FP32"].itemsize if plan.adapter is None else width)
    if plan.weights:
        source += plan.weights.stat().st_size
    if plan.adapter:  # read from its file, and held by the model
        source += 2 * (plan.adapter / ADAPTER_WEIGHTS).stat().st_size
    candidates = [total_bytes(one.directory) for one in plan.candidates if one.directory.is_dir()]
    kept = 2 * COMPARED_TOKENS * _vocabulary(plan.base) * DTYPES["FP32"].itemsize
    return int(max([source, *candidates]) * HEADROOM) + kept + OWN_BYTES


def _vocabulary(base: Path) -> int:
    config = read_config(base)
    text = config.get("text_config") or {}
    return int(config.get("vocab_size") or text.get("vocab_size") or LARGE_VOCABULARY)


def _has_room_on_gpu(needed: int) -> bool:
    if not torch.cuda.is_available():
        return False
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return needed < free


def format_size(count: int) -> str:
    """Return a size in GiB."""
    return f"{count / 1024**3:.1f} GiB"
