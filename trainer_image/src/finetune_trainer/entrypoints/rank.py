"""One of several training processes of a pod."""

# ruff: noqa: PLC0415 - what is heavy is imported when it is needed

import faulthandler
import logging
import os
import re
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from finetune_api.handoff import ExitCode, JobConfig, Report
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.distributed.rank_processes import DUMP_STACKS
from finetune_trainer.entrypoints import pod
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.errors import InvalidConfig, Stopped, TrainerError
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.storage.hardlinked import HardlinkedStore

logger = logging.getLogger(__name__)

PARENT_SECONDS = 1.0
DEFAULT_TIMEOUT_SECONDS = 600
TIMED_OUT = re.compile(r"(?i)timed out|timeout")
"""What gloo, NCCL and the store write when a collective takes too long."""


def train_rank(
    state: RunState, config_path: Path, workspace: Path, port: int, micro_batch: int | None
) -> Report | None:
    """Train with the other processes; rank 0 returns the report of the published result."""
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    local = _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE")
    faulthandler.enable()  # NCCL's watchdog aborts the process
    faulthandler.register(DUMP_STACKS)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    config = pod.read_config(config_path, state)
    pod.require_checked(config)
    quiet = None if rank == 0 else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    state.reporter = Reporter(config.uid, out=quiet)
    if local[0] == 0:
        pod.serve(state.reporter, port)
    state.stop.raise_if_set()
    state.reporter.start.end("process")
    storage = pod.connect_stores(config, state.stop, pod.TRAINER_RETRY_SECONDS)
    run = RunContext(config, storage, workspace, state.reporter, state.stop)
    if rank == 0 and (found := pod.find_result(run)):
        return found
    address = os.environ["MASTER_ADDR"], _number("MASTER_PORT")
    try:
        return _train(run, (rank, size, local, address), micro_batch)
    except RuntimeError as error:
        if state.stop.is_set():  # the others are stopped too, and may have ended already
            raise Stopped(f"stopped by SIGTERM while waiting for the other processes: {error}") from error
        if TIMED_OUT.search(str(error)):
            raise TrainerError(
                ExitCode.INTERNAL_ERROR,
                f"rank {rank} waited for the other processes for resources.collectiveTimeoutSeconds "
                f"({_timeout(config).total_seconds():.0f}): the logs have the stacks of all processes; check the "
                "network between the pods, or raise the time-out",
            ) from error
        raise


def _train(
    run: RunContext, place: tuple[int, int, tuple[int, int], tuple[str, int]], micro_batch: int | None
) -> Report | None:
    run.reporter.start.end("storage")
    with run.reporter.start.libraries():
        from finetune_trainer.distributed.world import join
        from finetune_trainer.models.device import require_gpus

    require_gpus(run.config)
    world = join(*place, run.on_work, timeout=_timeout(run.config))
    logger.info("rank %d of %d is connected", world.rank, world.size)
    run.reporter.start.end("processes")
    if world.local_rank:
        neighbour = run.workspace.parent / f"rank-{world.rank - world.local_rank}"
        run = replace(run, storage=HardlinkedStore(run.storage, run.workspace, neighbour))
    with run.reporter.start.libraries():
        from finetune_trainer.pipeline.train import train_distributed

    try:
        report = train_distributed(run, world, micro_batch)
    except Stopped:
        world.leave()
        raise
    if not world.is_first:
        world.leave()
    return report


def _timeout(config: JobConfig) -> timedelta:
    return timedelta(seconds=config.spec.resources.collective_timeout_seconds or DEFAULT_TIMEOUT_SECONDS)


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise InvalidConfig(f"{name} is {text!r}: `train` starts `rank`; do not run it by hand")
    return int(text)


def _end_with_parent(parent: int) -> None:
    """End this process when its parent is killed, because its result would be lost."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(ExitCode.INTERNAL_ERROR)
