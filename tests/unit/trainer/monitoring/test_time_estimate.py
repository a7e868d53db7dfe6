"""The time left: from the second step on, without what only the start takes."""

import pytest

from finetune_trainer.monitoring.time_estimate import TimeEstimate, count_evaluations


class Run:
    """A run on a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.estimate = TimeEstimate()

    def stage(self, name: str, seconds: float, step: int | None = None) -> None:
        """Be in a stage for some time."""
        self.estimate.observe(name, step, self.now)
        self.now += seconds

    def steps(self, first: int, last: int, seconds: float) -> None:
        """Take steps of the same duration."""
        for step in range(first, last + 1):
            self.now += seconds
            self.estimate.observe("Training", step, self.now)


def test_the_time_left_is_right_from_the_second_step_on_after_a_slow_start() -> None:
    run = Run()
    run.stage("Loading", 600)
    run.stage("Baseline", 300)
    run.stage("Training", 0, step=0)
    run.steps(1, 1, 40)
    assert run.estimate.remaining(100, None) is None
    run.steps(2, 2, 5)
    assert run.estimate.remaining(100, None) == 98 * 5


def test_a_run_that_resumes_counts_from_its_own_first_step() -> None:
    run = Run()
    run.stage("Loading", 600)
    run.stage("Training", 0, step=50)
    run.steps(51, 51, 30)
    run.steps(52, 53, 2)
    assert run.estimate.remaining(100, None) == 47 * 2


def test_each_evaluation_to_come_takes_as_long_as_the_baseline_until_one_was_measured() -> None:
    run = Run()
    run.stage("Baseline", 60)
    run.stage("Training", 0, step=0)
    run.steps(1, 3, 5)
    assert run.estimate.remaining(20, 10) == 17 * 5 + 2 * 60
    run.steps(4, 10, 5)
    run.stage("Evaluating", 80, step=10)
    run.stage("Training", 0, step=10)
    assert run.estimate.remaining(20, 10) == 10 * 5 + 80


def test_an_evaluation_does_not_slow_the_pace_of_the_steps_and_its_rest_counts() -> None:
    run = Run()
    run.stage("Baseline", 60)
    run.stage("Training", 0, step=0)
    run.steps(1, 10, 5)
    run.stage("Evaluating", 45, step=10)
    run.estimate.observe("Evaluating", 10, run.now)
    assert run.estimate.remaining(20, 10) == 10 * 5 + 60 + 15


def test_a_checkpoint_is_part_of_the_pace() -> None:
    run = Run()
    run.stage("Training", 0, step=0)
    run.steps(1, 2, 5)
    run.stage("Saving", 5, step=2)
    run.stage("Training", 0, step=2)
    run.steps(3, 3, 5)
    assert run.estimate.remaining(5, None) == 2 * (5 + 5 + 5) / 2


def test_a_run_that_starts_again_with_less_memory_forgets_the_pace_before() -> None:
    run = Run()
    run.stage("Training", 0, step=0)
    run.steps(1, 5, 9)
    run.stage("Training", 0, step=0)
    assert run.estimate.remaining(10, None) is None
    run.steps(1, 2, 3)
    assert run.estimate.remaining(10, None) == 8 * 3


def test_nothing_is_left_after_the_last_step() -> None:
    run = Run()
    run.stage("Training", 0, step=0)
    run.steps(1, 4, 2)
    assert run.estimate.remaining(4, 2) == 0


@pytest.mark.parametrize(
    ("step", "total", "every", "expected"),
    [(0, 20, 10, 2), (10, 20, 10, 1), (0, 25, 10, 3), (20, 25, 10, 1), (25, 25, 10, 0), (3, 25, None, 0)],
)
def test_the_evaluations_to_come_are_those_of_the_rhythm_and_one_after_the_last_step(
    step: int, total: int, every: int | None, expected: int
) -> None:
    assert count_evaluations(step, total, every) == expected
