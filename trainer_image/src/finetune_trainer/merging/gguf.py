"""Make GGUF files from a full model: llama.cpp's converter, then its quantiser, each in a process of its own."""

import logging
import shutil

from finetune_trainer.evaluation.gate_rules import ValidationResult
from finetune_trainer.merging import converter
from finetune_trainer.merging.converter import converter_command
from finetune_trainer.merging.gate import HEADROOM, KILLED, OWN_BYTES, GateNotRun, format_size
from finetune_trainer.merging.gate_messages import OUT_OF_MEMORY, GateReply
from finetune_trainer.merging.gguf_messages import GgufPlan
from finetune_trainer.merging.worker_process import Ended, Watch, run_module, run_process
from finetune_trainer.models.files.tensor_files import total_bytes
from finetune_trainer.monitoring.host_memory import available_bytes

logger = logging.getLogger(__name__)

WORKER = "finetune_trainer.merging.gguf_worker"
SIZES = {"BF16": 2.0, "F16": 2.0, "Q8_0": 1.07, "Q6_K": 0.83, "Q5_K_M": 0.72, "Q4_K_M": 0.61}
"""Bytes of a weight, rounded up: small matrices and embeddings keep more bits."""


def make_files(plan: GgufPlan, watch: Watch) -> list[ValidationResult]:
    """Write every file of a plan, and return how llama.cpp reads it; raises GateNotRun."""
    _require_room(plan)
    command = converter_command(plan.model, plan.precision, plan.converted.path)
    ended = run_process(command, {"HF_HUB_OFFLINE": "1"}, watch, [plan.converted.path], path=converter.LLAMA_CPP)
    if ended.code:
        _log("llama.cpp's converter", ended.code, ended.log)
        raise GateNotRun(_explain(ended))
    reply = watch.workspace / "gguf-reply.json"
    ended = run_module(WORKER, plan, reply, watch, [file.path for file in plan.files], path=converter.LLAMA_CPP)
    if ended.code == 0 and reply.is_file():
        return GateReply.model_validate_json(reply.read_bytes()).results
    _log("the process that compares GGUF files", ended.code, ended.log)
    if ended.code in {KILLED, OUT_OF_MEMORY}:
        raise GateNotRun("their process ran out of memory: raise resources.limits.memory")
    raise GateNotRun(f"their process failed: {ended.cause}")


def needed_disk(plan: GgufPlan) -> int:
    """Return the bytes of the files that are written."""
    size = total_bytes(plan.model)
    weights = size / (4 if plan.precision == "FP32" else 2)
    return int(size + sum(weights * SIZES[file.type] for file in plan.files))


def _require_room(plan: GgufPlan) -> None:
    needed, free = int(total_bytes(plan.model) * HEADROOM) + OWN_BYTES, available_bytes()
    if needed > free:
        raise GateNotRun(
            f"comparing them takes {format_size(needed)} of memory, and {format_size(free)} are free: "
            "raise resources.limits.memory"
        )
    needed, free = needed_disk(plan), shutil.disk_usage(plan.converted.path.parent).free
    if needed > free:
        raise GateNotRun(
            f"they take {format_size(needed)} of scratch space, and {format_size(free)} are free: "
            "raise resources.workspace.sizeLimit"
        )


def _explain(ended: Ended) -> str:
    """Return why the converter failed; it names a tokenizer by a digest of what that makes of a text."""
    if "pre-tokenizer was not recognized" in ended.log:
        return "llama.cpp's converter does not know this tokenizer: remove output.gguf"
    if "is not supported" in ended.cause:
        return "llama.cpp's converter does not know this architecture: remove output.gguf"
    return f"llama.cpp's converter failed: {ended.cause}"


def _log(what: str, code: int, log: str) -> None:
    logger.error("%s exited with %s; the end of its log:", what, code)
    for line in log.splitlines():
        logger.error("    %s", line)
