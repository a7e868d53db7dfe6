from finetune_trainer.evaluation.early_stopping import Plateau


def test_patience_counts_evaluations_without_a_fall_of_the_least_delta() -> None:
    plateau = Plateau(patience=2, min_delta=0.1)
    for step, loss in [(1, 3.0), (2, 2.0), (3, 1.95)]:
        plateau.update(step, loss)
    assert (plateau.without_improvement, plateau.is_exhausted) == (1, False)
    plateau.update(4, 1.91)
    assert plateau.is_exhausted


def test_the_best_step_is_the_lowest_loss_even_within_the_least_delta() -> None:
    plateau = Plateau(patience=2, min_delta=0.1)
    assert [plateau.update(step, loss) for step, loss in [(1, 2.0), (2, 1.95), (3, 1.99)]] == [True, True, False]
    assert (plateau.best_step, plateau.best_loss) == (2, 1.95)


def test_small_falls_add_up_to_an_improvement() -> None:
    plateau = Plateau(patience=2, min_delta=0.1)
    for step, loss in [(1, 2.0), (2, 1.94), (3, 1.88)]:
        plateau.update(step, loss)
    assert plateau.without_improvement == 0


def test_the_first_evaluations_do_not_wear_patience_out() -> None:
    plateau = Plateau(patience=2, min_delta=0.1, warmup=3)
    for step, loss in [(1, 2.0), (2, 2.2), (3, 2.4), (4, 2.3)]:
        plateau.update(step, loss)
    assert (plateau.without_improvement, plateau.best_step) == (1, 1)
    plateau.update(5, 2.2)
    assert plateau.is_exhausted


def test_without_patience_the_training_never_stops_early() -> None:
    plateau = Plateau(patience=None)
    for step in range(100):
        plateau.update(step, 1.0)
    assert not plateau.is_exhausted


def test_an_equal_loss_is_no_improvement_and_leaves_the_earlier_step_the_best() -> None:
    plateau = Plateau(patience=2)
    assert [plateau.update(step, 1.0) for step in (1, 2, 3)] == [True, False, False]
    assert (plateau.best_step, plateau.is_exhausted) == (1, True)
