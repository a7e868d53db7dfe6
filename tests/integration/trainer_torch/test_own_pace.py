"""Two processes that work at their own pace: both finish a block of work, or both are stopped in it."""

import json
import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from free_ports import free_port
from ranks import start_ranks

from finetune_trainer.distributed.own_pace import OwnPace
from finetune_trainer.distributed.world import World, join
from finetune_trainer.errors import Stopped
from finetune_trainer.sigterm import StopFlag

SECONDS = 4
"""Time-out of a collective."""


def test_one_process_may_work_longer_than_a_collective_waits(tmp_path: Path) -> None:
    for found in _run(tmp_path, "works for long"):
        assert found["ended"] == ["finished", "finished", "then a collective"]


@pytest.mark.parametrize("case", ["stopped while it works", "stopped while it waits", "stopped by another flag"])
def test_a_stop_of_one_process_stops_both_in_the_same_block(tmp_path: Path, case: str) -> None:
    for found in _run(tmp_path, case):
        assert found["ended"] == ["finished", "stopped"], found


def test_a_process_that_hangs_is_left_after_the_time_out(tmp_path: Path) -> None:
    first, _ = _run(tmp_path, "hangs")
    assert first["ended"] == ["finished", "timed out: another process neither works nor ends"]
    assert SECONDS <= first["seconds"] < 3 * SECONDS


def test_while_another_process_works_the_waiting_one_has_a_heartbeat(tmp_path: Path) -> None:
    first, second = _run(tmp_path, "works for long")
    assert first["beats"] >= SECONDS
    assert second["beats"] <= 2


def _run(folder: Path, case: str) -> list[dict[str, object]]:
    start_ranks(_work, (folder, free_port(), case), 2)
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


def _work(rank: int, folder: Path, port: int, case: str) -> World:
    """Work in two blocks, the first process shortly and the second one as the case has it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    world = join(rank, 2, (rank, 2), ("127.0.0.1", port), lambda: None, timeout=timedelta(seconds=SECONDS))
    flag, beats, began = StopFlag(), [], time.monotonic()
    pace, ended = OwnPace(flag, world), []
    try:
        for block in range(2):
            with pace.block(lambda: beats.append(rank)):
                if block:
                    _work_in_second_block(rank, pace, flag, case)
            ended.append("finished")
        ended += ["then a collective"] if world.any_rank(rank == 1) else []
    except Stopped:
        ended.append("stopped")
    except RuntimeError as error:
        ended.append(str(error))
    found = {"ended": ended, "beats": len(beats), "seconds": time.monotonic() - began}
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    world.leave()
    return world


def _work_in_second_block(rank: int, pace: OwnPace, flag: StopFlag, case: str) -> None:
    if rank == 0:
        if case == "stopped while it waits":
            threading.Timer(1.0, flag.set).start()
        return
    for piece in range(20 * SECONDS * 2):
        time.sleep(0.05)
        if case != "hangs":
            pace.raise_if_set()
        if case == "stopped while it works" and piece == 30:
            flag.set()
        if case == "stopped by another flag" and piece == 30:
            raise Stopped
