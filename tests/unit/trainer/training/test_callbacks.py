"""Steps that FP16's loss scaling skips, from the library's logs."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loop_bench import make_loop
from transformers import TrainerControl, TrainerState

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.training.callbacks import ReportProgress
from finetune_trainer.training.methods.parts import LoopContext

NAN, INF = float("nan"), float("inf")


def train(loop: LoopContext, norms: Iterable[float], first: int = 1, *, fp16: bool = True) -> None:
    """Report steps with these gradient norms, and the end of the training."""
    progress = ReportProgress(loop.reporter, loop.history, rows=8)
    args: Any = SimpleNamespace(fp16=fp16, per_device_train_batch_size=1, gradient_accumulation_steps=1)
    state, control = TrainerState(max_steps=100), TrainerControl()
    for step, norm in enumerate(norms, first):
        state.global_step = step
        logs = {"loss": 1.0, "grad_norm": norm, "learning_rate": 1e-4, "num_tokens": 10.0 * step}
        progress.on_log(args, state, control, logs)
    progress.on_train_end(args, state, control)


def test_steps_that_are_skipped_until_the_scale_fits_are_a_part_of_fp16(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    train(loop, [INF] * 24 + [1.0, NAN, 0.5])
    assert [point.grad_norm for point in loop.history.train[-4:]] == [None, 1.0, None, 0.5]


def test_gradients_that_no_scale_makes_finite_end_the_run(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    with pytest.raises(TrainerError, match=r"25 steps in a row .* at step 26: .*precision FP32") as caught:
        train(loop, [1.0] + [NAN] * 99)
    assert caught.value.code is ExitCode.DIVERGED


def test_a_training_in_which_every_step_was_skipped_is_not_a_success(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="every step so far") as caught:
        train(make_loop(tmp_path), [INF] * 8)
    assert caught.value.code is ExitCode.DIVERGED


def test_a_resumed_run_that_skips_its_last_steps_has_trained_before(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    train(loop, [1.0, 1.0])
    train(loop, [INF, INF], first=3)
    assert len(loop.history.train) == 4


def test_a_gradient_that_is_not_finite_ends_a_training_in_another_precision_at_once(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="gradient norm is not finite at step 2") as caught:
        train(make_loop(tmp_path), [1.0, INF], fp16=False)
    assert caught.value.code is ExitCode.DIVERGED
