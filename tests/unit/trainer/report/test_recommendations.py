from dataclasses import replace
from pathlib import Path

import pytest

from finetune_api.status import DatasetStatus, Resolved
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import Measured, TrainPoint
from finetune_trainer.evaluation.run_record import Machine, SampleStats
from finetune_trainer.report.recommendations import Evidence, recommend

SAMPLES = SampleStats(
    train_rows=1000,
    validation_rows=100,
    samples=1000,
    truncated_share=0.0,
    labelled_share=0.4,
    median_length=100,
    longest=200,
    full_length_p99=190,
)
MACHINE = Machine("GPU", peak_memory_bytes=70, gpu_memory_bytes=100, seconds=1.0, versions={})
BASELINE, FINAL = Measured(3.0, 100), Measured(2.0, 100)


def make_evidence(
    tmp_path: Path,
    *,
    train: list[float] | None = None,
    norms: list[float | None] | None = None,
    evaluations: list[float] | None = None,
    baseline: Measured | None = BASELINE,
    final: Measured | None = FINAL,
    early_stopped: bool = False,
    samples: SampleStats = SAMPLES,
    machine: Machine = MACHINE,
) -> Evidence:
    """A good run of 20 steps, but for what is given; evaluations are spread evenly."""
    losses = train or [2.0] * 20
    gradients = norms or [1.0] * len(losses)
    history = History(tmp_path / "metrics.jsonl")
    for step, (loss, norm) in enumerate(zip(losses, gradients, strict=True), 1):
        history.add_step(TrainPoint(step, step / 10, loss, 1e-4, norm, 100.0, 0.1))
    given = evaluations or [2.5, 2.0, 2.0, 2.0]
    for number, loss in enumerate(given, 1):
        history.add_evaluation(len(losses) * number // len(given), Measured(loss, 100))
    settings = Resolved(total_steps=len(losses), max_length=128)
    return Evidence(settings, samples, history, baseline, final, early_stopped, machine)


def advice(evidence: Evidence) -> str:
    return "\n".join(f"{found.advice} {found.evidence}" for found in recommend(evidence))


def test_a_good_run_gets_no_recommendation(tmp_path: Path) -> None:
    assert recommend(make_evidence(tmp_path)) == []


def test_a_tuned_model_no_better_than_the_base_is_not_to_be_used(tmp_path: Path) -> None:
    told = advice(make_evidence(tmp_path, final=Measured(3.0, 100)))
    assert told.startswith("Do not use or publish this result")
    assert "3 after training, 3 before" in told


def test_an_early_minimum_and_a_later_rise_is_overfitting(tmp_path: Path) -> None:
    told = advice(make_evidence(tmp_path, evaluations=[2.2, 2.0, 2.1, 2.2]))
    assert "overfits" in told
    assert "step 10 of 20 (2) and rose by 10.0 %" in told


def test_a_rise_of_two_percent_or_a_late_minimum_is_not_overfitting(tmp_path: Path) -> None:
    assert "overfits" not in advice(make_evidence(tmp_path, evaluations=[2.0, 2.01, 2.02, 2.03]))
    assert "overfits" not in advice(make_evidence(tmp_path, evaluations=[2.6, 2.5, 2.0, 2.3]))


def test_losses_that_still_fall_at_the_end_ask_for_longer_training(tmp_path: Path) -> None:
    falling = [3.0 - 0.05 * step for step in range(20)]
    told = advice(make_evidence(tmp_path, train=falling, evaluations=[2.9, 2.7, 2.5, 2.3]))
    assert "Train longer" in told
    assert "fell by 8.0 % between the last two evaluations" in told


def test_early_stopping_speaks_against_longer_training(tmp_path: Path) -> None:
    falling = [3.0 - 0.05 * step for step in range(20)]
    evidence = make_evidence(tmp_path, train=falling, evaluations=[2.9, 2.7, 2.5, 2.3], early_stopped=True)
    assert "Train longer" not in advice(evidence)


def test_a_gradient_far_above_those_before_it_is_a_spike(tmp_path: Path) -> None:
    told = advice(make_evidence(tmp_path, norms=[*[1.0] * 15, 11.0, *[1.0] * 4]))
    assert "the gradient spikes" in told
    assert "1 of 20 steps" in told
    assert "highest norm 11" in told


def test_gradients_that_shrink_as_training_settles_are_no_spikes(tmp_path: Path) -> None:
    assert "spikes" not in advice(make_evidence(tmp_path, norms=[100.0] * 5 + [1.0] * 15))


def test_steps_without_a_finite_gradient_are_told(tmp_path: Path) -> None:
    assert "2 steps without a finite gradient" in advice(make_evidence(tmp_path, norms=[None, None, *[1.0] * 18]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"truncated_share": 0.051}, "Raise hyperparameters.maxLength to 192"),
        ({"labelled_share": 0.049}, "Check the masks"),
        ({"train_rows": 199}, "199 training rows, fewer than 200"),
        ({"validation_rows": 0}, "nothing was evaluated"),
    ],
)
def test_the_samples_are_judged(tmp_path: Path, change: dict[str, float], expected: str) -> None:
    values = {name: getattr(SAMPLES, name) for name in SampleStats.__slots__} | change
    assert expected in advice(make_evidence(tmp_path, samples=SampleStats(**values)))


@pytest.mark.parametrize(("skipped", "is_told"), [(50, False), (51, True)])
def test_rows_that_were_skipped_for_their_length_ask_for_a_longer_one(
    tmp_path: Path, skipped: int, is_told: bool
) -> None:
    """The length that is advised covers the skipped rows too, which are no samples."""
    counts = {"PROMPT_FILLS_CONTEXT": skipped, "BAD_JSON": 400}
    dataset = DatasetStatus(rows=1000, rejected_by_code=counts, length_p99=700)
    told = advice(replace(make_evidence(tmp_path), dataset=dataset))
    assert ("Raise hyperparameters.maxLength to 704: rows whose prompt alone fills it are skipped." in told) is is_told
    assert ("5.1 % of the rows have no token of an answer within 128 tokens" in told) is is_told


def test_few_validation_rows_come_with_an_interval(tmp_path: Path) -> None:
    values = {name: getattr(SAMPLES, name) for name in SampleStats.__slots__} | {"validation_rows": 20}
    final = Measured(2.0, 100, standard_error=0.1)
    assert "loss 2 ± 0.2 (95 %)" in advice(make_evidence(tmp_path, samples=SampleStats(**values), final=final))


def test_a_gpu_that_is_half_empty_asks_for_larger_micro_batches(tmp_path: Path) -> None:
    idle = Machine("GPU", peak_memory_bytes=59, gpu_memory_bytes=100, seconds=1.0, versions={})
    assert "peak memory 59 % of the GPU's" in advice(make_evidence(tmp_path, machine=idle))
    on_cpu = Machine("CPU", peak_memory_bytes=59, gpu_memory_bytes=None, seconds=1.0, versions={})
    assert recommend(make_evidence(tmp_path, machine=on_cpu)) == []


@pytest.mark.parametrize(
    ("margin", "is_flat"), [(0.004, True), (-1.0, True), (0.05, False), (2.0, False), (None, False)]
)
def test_a_margin_that_does_not_grow_is_told(tmp_path: Path, margin: float | None, is_flat: bool) -> None:
    told = advice(make_evidence(tmp_path, final=Measured(0.69, 100, reward_margin=margin)))
    assert ("the margin is flat" in told) == is_flat
    assert (f"mean margin {margin:.3g} after training" in told) if is_flat else told == ""


@pytest.mark.parametrize(
    ("liked", "weights", "told"),
    [
        (80, (1.0, 1.0), "Set kto.undesirableWeight to 4: one kind of answers outweighs the other."),
        (20, (1.0, 2.0), "Set kto.desirableWeight to 8: one kind of answers outweighs the other."),
        (80, (1.0, 4.0), ""),
        (60, (1.0, 1.0), ""),
        (100, (1.0, 1.0), "Add answers of the other kind"),
        (0, (1.0, 1.0), "0 liked and 100 disliked answers"),
    ],
)
def test_judged_answers_of_one_kind_that_outweigh_the_other_are_told_with_the_weight_to_set(
    tmp_path: Path, liked: int, weights: tuple[float, float], told: str
) -> None:
    evidence = make_evidence(tmp_path, samples=replace(SAMPLES, samples=100, desirable=liked))
    evidence.settings.desirable_weight, evidence.settings.undesirable_weight = weights
    found = advice(evidence)
    assert told in found
    assert bool(told) == bool(found)
