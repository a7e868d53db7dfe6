"""A micro-batch reads nothing back from the device: each read would stop the CPU until the GPU has caught up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from packed_rows import make_trainer, settings_for
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override


class CountReads(TorchDispatchMode):
    """Count the numbers that Python reads from tensors."""

    reads = 0

    @override
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is torch.ops.aten._local_scalar_dense.default:
            self.reads += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("packing", [True, False])
def test_no_micro_batch_of_supervised_training_reads_from_the_device(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    settings = settings_for("LoRA", packing=packing, batch=1 if packing else 3)
    settings = settings.model_copy(update={"gradient_accumulation_steps": 2, "gradient_checkpointing": True})
    trainer = make_trainer(tiny_model, tmp_path, settings)
    train_batch, reads = trainer.training_step, []

    def count(*arguments: Any, **options: Any) -> torch.Tensor:
        with CountReads() as counter:
            loss = train_batch(*arguments, **options)
        reads.append(counter.reads)
        return loss

    monkeypatch.setattr(trainer, "training_step", count)
    trainer.train()
    assert reads == [0, 0]
