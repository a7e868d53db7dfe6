import json
import math
from pathlib import Path

import pytest

from finetune_trainer.evaluation.record import History, Measured, Plateau, TrainPoint, token_mean


def test_the_loss_is_weighted_by_token_and_not_by_batch() -> None:
    assert token_mean([(1.0, 10), (4.0, 90)]).loss == pytest.approx(3.7)


def test_equal_batches_have_no_standard_error() -> None:
    assert token_mean([(2.0, 10), (2.0, 30)]).standard_error == 0.0


def test_one_batch_tells_nothing_of_its_error() -> None:
    assert token_mean([(2.0, 10)]).standard_error is None


def test_no_tokens_are_no_division_by_zero() -> None:
    assert token_mean([]) == Measured(0.0, 0)


def test_the_perplexity_of_a_hopeless_model_is_infinite() -> None:
    assert Measured(1e4, 1).perplexity == math.inf


def test_patience_counts_evaluations_without_a_fall_of_the_least_delta() -> None:
    plateau = Plateau(patience=2, min_delta=0.1)
    for step, loss in [(1, 3.0), (2, 2.0), (3, 1.95)]:
        plateau.observe(step, loss)
    assert (plateau.without_improvement, plateau.is_exhausted) == (1, False)
    plateau.observe(4, 1.91)
    assert plateau.is_exhausted


def test_the_best_step_is_the_lowest_loss_even_within_the_least_delta() -> None:
    plateau = Plateau(patience=2, min_delta=0.1)
    assert [plateau.observe(step, loss) for step, loss in [(1, 2.0), (2, 1.95), (3, 1.99)]] == [True, True, False]
    assert (plateau.best_step, plateau.best_loss) == (2, 1.95)


def test_small_falls_add_up_to_an_improvement() -> None:
    plateau = Plateau(patience=2, min_delta=0.1)
    for step, loss in [(1, 2.0), (2, 1.94), (3, 1.88)]:
        plateau.observe(step, loss)
    assert plateau.without_improvement == 0


def test_the_first_evaluations_do_not_wear_patience_out() -> None:
    plateau = Plateau(patience=2, min_delta=0.1, warmup=3)
    for step, loss in [(1, 2.0), (2, 2.2), (3, 2.4), (4, 2.3)]:
        plateau.observe(step, loss)
    assert (plateau.without_improvement, plateau.best_step) == (1, 1)
    plateau.observe(5, 2.2)
    assert plateau.is_exhausted


def test_without_patience_the_training_never_stops_early() -> None:
    plateau = Plateau(patience=None)
    for step in range(100):
        plateau.observe(step, 1.0)
    assert not plateau.is_exhausted


def test_every_event_is_a_line_of_json_at_once(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.jsonl")
    history.add_evaluation(0, Measured(3.0, 10))
    history.add_step(TrainPoint(1, 0.5, 2.5, 1e-4, None, 100.0, 0.1))
    lines = [json.loads(line) for line in history.path.read_text(encoding="utf-8").splitlines()]
    assert [(line["kind"], line["step"], line["loss"]) for line in lines] == [("eval", 0, 3.0), ("train", 1, 2.5)]


def test_a_new_try_begins_with_an_empty_file(tmp_path: Path) -> None:
    History(tmp_path / "metrics.jsonl").add_evaluation(0, Measured(3.0, 10))
    assert History(tmp_path / "metrics.jsonl").path.read_text(encoding="utf-8") == ""


def test_what_was_resumed_and_from_where_goes_from_run_to_run(tmp_path: Path) -> None:
    history = History(tmp_path / "first.jsonl")
    history.add_evaluation(0, Measured(3.0, 10))
    history.add_step(TrainPoint(1, 0.5, 2.5, 1e-4, None, 100.0, 0.1))
    second = History(tmp_path / "second.jsonl")
    second.take_over(history.path)
    second.add_step(TrainPoint(2, 1.0, 2.5, 1e-4, None, 100.0, 0.1))
    third = History(tmp_path / "third.jsonl")
    third.take_over(second.path)
    assert (history.resumed_from, second.resumed_from, third.resumed_from) == ([], [1], [1, 2])
    assert [point.step for point in third.train] == [1, 2]
    assert third.baseline() == Measured(3.0, 10)
