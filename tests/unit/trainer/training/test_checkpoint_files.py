"""What a resumed run takes from the files of its checkpoint."""

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import Measured, TrainPoint, reward_mean
from finetune_trainer.training.checkpoint_files import replay_evaluations


def trained(step: int, rate: float = 1e-4, grad_norm: float | None = 1.0, **fields: Any) -> TrainPoint:
    return TrainPoint(step, 0.1, 1.0, rate, grad_norm, 1.0, 1.0, **fields)


@pytest.mark.parametrize(
    ("flat_shares", "best"), [([1.0, 1.0, 0.5, 0.5], 4), ([1.0, 0.5, 1.0, 1.0], 2), ([1.0] * 4, None)]
)
def test_rewards_from_before_the_first_group_with_a_spread_are_no_best_step(
    tmp_path: Path, flat_shares: list[float], best: int | None
) -> None:
    history, plateau = History(tmp_path / "metrics.jsonl"), Plateau(None)
    for step, (flat_share, reward) in enumerate(zip(flat_shares, [0.2, 0.5, 0.3, 0.4], strict=True), 1):
        history.add_step(trained(step, reward=0.5, flat_share=flat_share))
        history.add_reward(reward_mean(step, [reward, reward], completion_length=1, clipped_share=0))
    replay_evaluations(history, plateau)
    assert plateau.best_step == best


@pytest.mark.parametrize(
    ("first", "best"), [({"rate": 0.0}, 2), ({"grad_norm": None}, 2), ({}, 1)], ids=["warm-up", "skipped", "trained"]
)
def test_weights_that_no_step_has_changed_yet_are_no_best_step(
    tmp_path: Path, first: dict[str, Any], best: int
) -> None:
    history, plateau = History(tmp_path / "metrics.jsonl"), Plateau(patience=2)
    for step, loss in enumerate([1.0, 1.5, 1.6], 1):
        history.add_step(trained(step, **(first if step == 1 else {})))
        history.add_evaluation(step, Measured(loss, 10))
    replay_evaluations(history, plateau)
    assert plateau.best_step == best
    assert plateau.is_exhausted is (best == 1)
