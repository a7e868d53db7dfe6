from pathlib import Path

from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.kept_steps import KeptStep, describe_steps, find_kept, rank_steps
from finetune_trainer.evaluation.measurements import Measured, TrainPoint, reward_mean


def train(history: History, steps: int) -> History:
    for step in range(1, steps + 1):
        history.add_step(TrainPoint(step, step / 4, 2.5, 1e-4, None, 100.0, 0.1))
    return history


def test_the_steps_with_the_lowest_held_out_loss_are_first_and_of_equal_ones_the_earlier(tmp_path: Path) -> None:
    history = train(History(tmp_path / "metrics.jsonl"), 8)
    for step, loss in ((2, 2.0), (4, 1.0), (6, 1.5), (8, 1.5)):
        history.add_evaluation(step, Measured(loss, 10))
    assert rank_steps([2, 4, 6, 8], history) == [4, 6, 8, 2]
    assert describe_steps([8, 4], history) == [KeptStep(4, 1.0, loss=1.0), KeptStep(8, 2.0, loss=1.5)]


def test_with_rewards_the_highest_is_first(tmp_path: Path) -> None:
    history = train(History(tmp_path / "metrics.jsonl"), 6)
    for step, reward in ((2, 0.25), (4, 1.0), (6, 0.5)):
        history.add_reward(reward_mean(step, [reward], completion_length=4.0, clipped_share=0.0))
    assert rank_steps([2, 4, 6], history) == [4, 6, 2]
    assert describe_steps([6], history) == [KeptStep(6, 1.5, reward=0.5)]


def test_without_held_out_rows_the_last_is_first(tmp_path: Path) -> None:
    history = train(History(tmp_path / "metrics.jsonl"), 4)
    assert rank_steps([2, 3, 4], history) == [4, 3, 2]
    assert describe_steps([2, 4], history) == [KeptStep(4, 1.0), KeptStep(2, 0.5)]


def test_the_steps_of_a_result_are_those_with_a_folder(tmp_path: Path) -> None:
    assert find_kept(tmp_path) == []
    for step in (24, 8):
        (tmp_path / KeptStep(step).folder).mkdir(parents=True)
    assert find_kept(tmp_path) == [8, 24]
    assert (tmp_path / "kept-checkpoints" / "step-000024").is_dir()
