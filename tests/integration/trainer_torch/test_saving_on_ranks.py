"""Two processes that save together while the store of one of them is away and SIGTERM arrives: both end in seconds."""

import json
import os
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from free_ports import free_port
from loop_bench import CPU, make_loop, make_settings
from ranks import start_ranks
from training_bench import make_spec
from typing_extensions import override

from finetune_api.handoff import ExitCode, JobConfig, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.distributed.world import AgreedStop, join
from finetune_trainer.errors import StorageUnavailable, TrainerError
from finetune_trainer.models.loading import load_for_training, load_tokenizer
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import OnBytes
from finetune_trainer.storage.retries import retry
from finetune_trainer.tokenization.labeler import Encoded
from finetune_trainer.training.checkpoints import Checkpoints
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import TrainerParts
from finetune_trainer.training.methods.sft import build_sft_trainer

SAMPLES = [Encoded([1, 20 + n, 21, 22, 2], [-100, -100, 21, 22, 2], 3) for n in range(8)]
COLLECTIVE = timedelta(minutes=2)
"""How long a process would wait for the other one."""
SOON_SECONDS = 30
MANIFEST = "checkpoints/step-000002/manifest.json"


@pytest.mark.parametrize(
    ("away", "method"), [(0, "LoRA"), (1, "Full")], ids=["the store of the first", "the store that gets shards"]
)
def test_a_store_that_is_back_after_the_stop_gets_the_checkpoint(
    tiny_model: Path, tmp_path: Path, away: int, method: str
) -> None:
    for found in _save_on_ranks(tiny_model, tmp_path, away=away, method=method, is_back=True):
        assert (found["code"], found["step"]) == (ExitCode.PREEMPTED, 2)
        assert found["seconds"] < SOON_SECONDS
    assert json.loads((tmp_path / "output" / MANIFEST).read_text())["step"] == 2


def test_a_store_that_stays_away_ends_both_processes(tiny_model: Path, tmp_path: Path) -> None:
    first, second = _save_on_ranks(tiny_model, tmp_path, away=0, method="LoRA", is_back=False)
    assert (first["code"], second["code"]) == (ExitCode.STORAGE_UNAVAILABLE, ExitCode.PREEMPTED)
    assert max(first["seconds"], second["seconds"]) < SOON_SECONDS
    assert not (tmp_path / "output" / MANIFEST).exists()


class AwayStore(LocalStore):
    """A folder that cannot be written to until SIGTERM, which arrives between two tries, or ever after."""

    def __init__(self, folder: Path, stop: StopFlag, *, is_back: bool) -> None:
        super().__init__({"s3://bucket/output": folder})
        self.stop, self.is_back = stop, is_back

    @override
    def upload(self, path: Path, uri: str, on_bytes: OnBytes | None = None) -> None:
        def call() -> None:
            if self.is_back and self.stop.is_set():
                LocalStore.upload(self, path, uri, on_bytes)
                return
            threading.Timer(0.1, self.stop.set).start()  # the first pause is half a second or longer
            raise StorageUnavailable(f"{uri}: away")

        retry(call, lambda error: isinstance(error, StorageUnavailable) and not self.stop.is_set(), 60.0, self.stop)


def _save_on_ranks(model: Path, folder: Path, **case: Any) -> list[dict[str, Any]]:
    start_ranks(_train, (model, folder, free_port(), case), 2)
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


def _train(rank: int, model: Path, folder: Path, port: int, case: dict[str, Any]) -> LoopTrainer:
    """Train up to the first checkpoint and write how the training ends."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    world = join(rank, 2, (rank, 2), ("127.0.0.1", port), lambda: None, timeout=COLLECTIVE)
    stop, output, workspace = StopFlag(), folder / "output", folder / f"rank-{rank}"
    store = LocalStore({"s3://bucket/output": output})
    if rank == case["away"]:
        store = AwayStore(output, stop, is_back=case["is_back"])
    workspace.mkdir()
    spec = FineTuneJobSpec.model_validate(make_spec(case["method"], checkpoint={"steps": 2}))
    config = JobConfig(
        namespace="team", name="job", uid="u", config_sha256=config_sha256(spec), spec=spec, resolved=Resolved()
    )
    loop = make_loop(workspace)
    checkpoints = Checkpoints(RunContext(config, store, workspace, loop.reporter, stop), "0" * 64, {})
    loop = replace(loop, world=world, stop=AgreedStop(stop, world), checkpoints=checkpoints)
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    settings = make_settings(case["method"], **batch, total_steps=4, eval_steps=4)
    parts = TrainerParts(
        load_for_training(model, settings, CPU, world=world),
        load_tokenizer(model),
        settings,
        loop,
        SAMPLES,
        SAMPLES,
        workspace / "scratch",
    )
    trainer, code = build_sft_trainer(parts), 0
    began = time.monotonic()
    try:
        trainer.train()
    except TrainerError as error:
        code = error.code
    found = {"code": code, "step": checkpoints.last_step, "seconds": time.monotonic() - began}
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    world.leave()
    return trainer
