"""The gate before publishing: runs its process where the memory suffices, and hears what it saw."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import torch

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.gate_rules import ValidationResult
from finetune_trainer.evaluation.logprobs import COMPARED_TOKENS
from finetune_trainer.merging.gate_messages import OUT_OF_MEMORY, GatePlan, GateReply
from finetune_trainer.models.loading import DTYPES
from finetune_trainer.models.tensor_files import total_bytes
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag

logger = logging.getLogger(__name__)

OWN_BYTES = 700 * 1024**2
"""What the process takes without a model: the libraries."""
LARGE_VOCABULARY = 262_144
HEADROOM = 1.1
KILLED = -9
SHORT = frozenset({KILLED, OUT_OF_MEMORY})
POLL_SECONDS = 0.1


class GateNotRun(Exception):  # noqa: N818 - what happened, said in the report
    """The gate cannot judge here, and why."""


def run_gate(plan: GatePlan, workspace: Path, reporter: Reporter, stop: StopFlag) -> list[ValidationResult]:
    """What the gate's process saw of each candidate; raises GateNotRun. What is short on a GPU is tried on the CPU."""
    needed = require_memory(plan)
    code, answer, told = KILLED, workspace / "gate-answer.json", ""
    for device in ("cuda", "cpu") if _has_room_on_gpu(needed) else ("cpu",):
        code, told = _ask(plan.model_copy(update={"device": device}), workspace, answer, reporter, stop=stop)
        if code not in SHORT:
            break
    if code in SHORT:
        raise GateNotRun("its process was short of memory: raise resources.limits.memory")
    if code or not answer.is_file():
        logger.error("the gate's process ended with %s:\n%s", code, told)
        last = told.splitlines()[-1] if told else f"exit code {code}"
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"the gate's process failed: {last[:400]}")
    return GateReply.model_validate_json(answer.read_bytes()).results


def require_memory(plan: GatePlan) -> int:
    """How many bytes one model takes at a time; raises GateNotRun where they are not free."""
    needed, free = needed_bytes(plan), available_bytes()
    if needed > free:
        raise GateNotRun(
            f"one model at a time is loaded, which takes {_size(needed)} of memory, and {_size(free)} are free: "
            "raise resources.limits.memory"
        )
    return needed


def _ask(plan: GatePlan, workspace: Path, answer: Path, reporter: Reporter, *, stop: StopFlag) -> tuple[int, str]:
    """Exit code and last words of the process."""
    question = workspace / "gate.json"
    question.write_text(plan.model_dump_json(), encoding="utf-8")
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "finetune_trainer.merging.gate_worker", str(question), str(answer)]
    with (workspace / "gate.log").open("w+b") as errors:
        code = _run(command, errors.fileno(), reporter, stop)
        errors.seek(0)
        return code, errors.read()[-4000:].decode("utf-8", "replace").strip()


def needed_bytes(plan: GatePlan) -> int:
    """The larger of the models that are loaded one after the other, and what is kept of the first."""
    width = DTYPES[plan.precision].itemsize
    source = total_bytes(plan.base, DTYPES["FP32"].itemsize if plan.adapter is None else width)
    trained = sum(path.stat().st_size for path in (plan.weights,) if path)
    most = max(source + trained, *(total_bytes(one.directory) for one in plan.candidates if one.directory.is_dir()))
    kept = 2 * COMPARED_TOKENS * _vocabulary(plan.base) * DTYPES["FP32"].itemsize
    return int(most * HEADROOM) + kept + OWN_BYTES


def _vocabulary(base: Path) -> int:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or {}
    return int(config.get("vocab_size") or text.get("vocab_size") or LARGE_VOCABULARY)


def _has_room_on_gpu(needed: int) -> bool:
    if not torch.cuda.is_available():
        return False
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return needed < free


def _run(command: list[str], errors: int, reporter: Reporter, stop: StopFlag) -> int:
    """The exit code; the heartbeat moves while the process gives signs of life, and a stop ends it."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    lives = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process:  # noqa: S603 - its own module
        listener = threading.Thread(target=_listen, args=(process.stdout, lives), daemon=True)
        listener.start()
        try:
            while process.poll() is None:
                stop.raise_if_set()
                if lives.is_set():
                    lives.clear()
                    reporter.beat()
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            listener.join()
    return process.returncode


def _listen(lines: IO[bytes] | None, lives: threading.Event) -> None:
    for _ in lines or ():
        lives.set()


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"


UNLIMITED = 1 << 60


def available_bytes(root: Path = Path("/")) -> int:
    """What the node has free, or the container's limit less what it holds and the kernel cannot take back."""
    return min(_of_node(root), _of_group(root / "sys/fs/cgroup"))


def _of_node(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return UNLIMITED


def _of_group(group: Path) -> int:
    """Of either version of cgroups; files that were read fill it too, and give way."""
    if (group / "memory.max").is_file():
        limit, used, cache = group / "memory.max", group / "memory.current", "inactive_file"
    else:
        group /= "memory"
        limit, used, cache = group / "memory.limit_in_bytes", group / "memory.usage_in_bytes", "total_inactive_file"
    try:
        text = limit.read_text(encoding="ascii").strip()
        most = int(text) if text.isdecimal() else UNLIMITED
        held = int(used.read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        figures = dict(line.split() for line in lines if len(line.split()) == 2)
        return max(0, most - held + int(figures.get(cache, 0)))
    except (OSError, ValueError):
        return UNLIMITED
