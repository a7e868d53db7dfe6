"""The gate before publishing: runs its process if the memory suffices, and reads the results."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch

from finetune_api.handoff import ADAPTER_WEIGHTS
from finetune_trainer.evaluation.gate_rules import ValidationResult
from finetune_trainer.evaluation.logprobs import COMPARED_TOKENS
from finetune_trainer.merging.gate_messages import OUT_OF_MEMORY, GatePlan, GateReply
from finetune_trainer.models.base_model import read_config
from finetune_trainer.models.loading import DTYPES
from finetune_trainer.models.tensor_files import total_bytes
from finetune_trainer.monitoring.host_memory import available_bytes
from finetune_trainer.sigterm import StopFlag

logger = logging.getLogger(__name__)

OWN_BYTES = 700 * 1024**2
"""Memory of the process without a model: the libraries."""
LARGE_VOCABULARY = 262_144
HEADROOM = 1.1
KILLED = -9
SHORT = frozenset({KILLED, OUT_OF_MEMORY})
POLL_SECONDS = 0.1


class GateNotRun(Exception):  # noqa: N818 - an outcome for the report, not an error
    """The gate cannot run on this machine; the message gives the reason."""


def run_gate(plan: GatePlan, workspace: Path, on_work: Callable[[], None], stop: StopFlag) -> list[ValidationResult]:
    """Return the results of the gate's process; raises GateNotRun. If it fails on the GPU, the CPU is tried."""
    needed = require_memory(plan)
    code, reply, log = KILLED, workspace / "gate-reply.json", ""
    for device in ("cuda", "cpu") if _has_room_on_gpu(needed) else ("cpu",):
        code, log = _run_worker(plan.model_copy(update={"device": device}), workspace, reply, on_work, stop=stop)
        if code == 0 and reply.is_file():
            return GateReply.model_validate_json(reply.read_bytes()).results
        logger.error("the gate's process exited with %s on device %s; the end of its log:", code, device)
        for line in log.splitlines():
            logger.error("    %s", line)
    if code in SHORT:
        raise GateNotRun("its process ran out of memory: raise resources.limits.memory")
    raise GateNotRun(f"its process failed: {(log.splitlines() or [_describe_exit(code)])[-1][:400]}")


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"killed by signal {signal.Signals(-code).name}"
    return f"exit code {code}" if code else "no reply"


def _run_worker(
    plan: GatePlan, workspace: Path, reply: Path, on_work: Callable[[], None], *, stop: StopFlag
) -> tuple[int, str]:
    """Run the process; return its exit code and the end of its log."""
    plan_file = workspace / "gate.json"
    plan_file.write_text(plan.model_dump_json(), encoding="utf-8")
    reply.unlink(missing_ok=True)
    command = [sys.executable, "-m", "finetune_trainer.merging.gate_worker", str(plan_file), str(reply)]
    with (workspace / "gate.log").open("w+b") as errors:
        code = _wait_for(command, errors.fileno(), on_work, stop)
        errors.seek(0)
        return code, errors.read()[-4000:].decode("utf-8", "replace").strip()


def _wait_for(command: list[str], errors: int, on_work: Callable[[], None], stop: StopFlag) -> int:
    """Return the exit code; `on_work` is called when the process has written lines, and a stop kills it."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    progress = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process:  # noqa: S603 - its own module
        listener = threading.Thread(target=_listen, args=(process.stdout, progress), daemon=True)
        listener.start()
        try:
            while process.poll() is None:
                stop.raise_if_set()
                if progress.is_set():
                    progress.clear()
                    on_work()
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            listener.join()
    return process.returncode


def _listen(lines: IO[bytes] | None, progress: threading.Event) -> None:
    for _ in lines or ():
        progress.set()


def require_memory(plan: GatePlan) -> int:
    """Return the bytes that the gate needs for one model at a time; raises GateNotRun if they are not free."""
    needed, free = needed_bytes(plan), available_bytes()
    if needed > free:
        raise GateNotRun(
            f"loading one model at a time takes {_size(needed)} of memory, and {_size(free)} are free: "
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


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"
