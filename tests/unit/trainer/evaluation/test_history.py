import json
from pathlib import Path

from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import Measured, RewardPart, TrainPoint, reward_mean, token_mean


def test_every_event_is_a_line_of_json_at_once(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.jsonl")
    history.add_evaluation(0, Measured(3.0, 10))
    history.add_step(TrainPoint(1, 0.5, 2.5, 1e-4, None, 100.0, 0.1))
    lines = [json.loads(line) for line in history.path.read_text(encoding="utf-8").splitlines()]
    assert [(line["kind"], line["step"], line["loss"]) for line in lines] == [("eval", 0, 3.0), ("train", 1, 2.5)]


def test_rewards_are_read_back_with_their_parts(tmp_path: Path) -> None:
    first, second = History(tmp_path / "first.jsonl"), History(tmp_path / "second.jsonl")
    sampled: dict[str, float] = {"completion_length": 4.0, "clipped_share": 0.5}
    first.add_reward(reward_mean(0, [0.0, 2.0], parts=[(0.0, 0.5), (1.0, 0.5)], **sampled))
    first.set_final_reward(reward_mean(3, [2.0, 2.0], **sampled))
    second.read(first.path)
    assert (second.rewards, second.final_reward) == (first.rewards, first.final_reward)
    assert second.rewards[0].parts == (RewardPart(0.5, 0.5), RewardPart(0.5, 0.0))


def test_the_samples_of_the_final_reward_are_read_back_with_their_prompts(tmp_path: Path) -> None:
    first, second = History(tmp_path / "first.jsonl"), History(tmp_path / "second.jsonl")
    point = reward_mean(3, [2.0, 1.0], completion_length=4.0, clipped_share=0.5, owners=((1, 0), (1, 0)))
    first.set_final_reward(point)
    second.read(first.path)
    assert second.final_reward == point


def test_evaluations_are_read_back_with_their_batches_which_the_report_compares(tmp_path: Path) -> None:
    first, second = History(tmp_path / "first.jsonl"), History(tmp_path / "second.jsonl")
    for step in (0, 5, 10):
        first.add_evaluation(step, token_mean([(2.0, 10), (3.0 + step, 30)]))
    second.load(first.path)
    assert second.evaluations == first.evaluations


def test_a_new_try_begins_with_an_empty_file(tmp_path: Path) -> None:
    History(tmp_path / "metrics.jsonl").add_evaluation(0, Measured(3.0, 10))
    assert History(tmp_path / "metrics.jsonl").path.read_text(encoding="utf-8") == ""


def test_what_was_resumed_and_from_where_goes_from_run_to_run(tmp_path: Path) -> None:
    history = History(tmp_path / "first.jsonl")
    history.add_evaluation(0, Measured(3.0, 10))
    history.add_step(TrainPoint(1, 0.5, 2.5, 1e-4, None, 100.0, 0.1))
    second = History(tmp_path / "second.jsonl")
    second.load(history.path)
    second.add_step(TrainPoint(2, 1.0, 2.5, 1e-4, None, 100.0, 0.1))
    third = History(tmp_path / "third.jsonl")
    third.load(second.path)
    assert (history.resumed_from, second.resumed_from, third.resumed_from) == ([], [1], [1, 2])
    assert [point.step for point in third.train] == [1, 2]
    assert third.baseline() == Measured(3.0, 10)


def test_a_run_that_was_stopped_before_its_first_step_is_resumed_from_step_0(tmp_path: Path) -> None:
    first, second = History(tmp_path / "first.jsonl"), History(tmp_path / "second.jsonl")
    first.add_evaluation(0, Measured(3.0, 10))
    second.load(first.path)
    second.add_evaluation(1, Measured(2.5, 10))
    assert second.resumed_from == [0]
    assert [point.step for point in second.training_evaluations()] == [1]
