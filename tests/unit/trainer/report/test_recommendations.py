import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_record import make_run

from finetune_api.evaluate_mode import Mode
from finetune_api.evaluation import Prompt
from finetune_api.handoff import Artifact
from finetune_api.status import DatasetStatus, EarlyStoppingStatus, EvaluationStatus, Resolved
from finetune_trainer.evaluation.ability import Ability
from finetune_trainer.evaluation.held_out_answers import FrequentAnswer, HeldOutAnswers
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import EvalPoint, Measured, TrainPoint, reward_mean, token_mean
from finetune_trainer.evaluation.run_record import Answer, BaseFacts, Machine, RunRecord, SampleStats, Served
from finetune_trainer.report.document import write_documents
from finetune_trainer.report.recommendations import recommend
from finetune_trainer.report.rules.training import overfit, still_falling

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


def measured(loss: float, *, groups: int = 40, **figures: float | None) -> Measured:
    """A held-out loss; two of them differ by the same in every group of rows, but for a little."""
    sway = [0.02 * (-1) ** at * loss for at in range(groups)]
    return Measured(loss, 100, batches=tuple((loss + one, 10) for one in sway), **figures)


BASELINE, FINAL = measured(3.0), measured(2.0)


def good_run(
    tmp_path: Path,
    *,
    train: list[float] | None = None,
    norms: list[float | None] | None = None,
    evaluations: list[float] | None = None,
    **changes: Any,
) -> RunRecord:
    """A good run of 20 steps, except for what is given; evaluations are spread evenly."""
    losses = train or [2.0] * 20
    gradients = norms or [1.0] * len(losses)
    history = History(tmp_path / "metrics.jsonl")
    for step, (loss, norm) in enumerate(zip(losses, gradients, strict=True), 1):
        history.add_step(TrainPoint(step, step / 10, loss, 1e-4, norm, 100.0, 0.1))
    given = evaluations or [2.5, 2.0, 2.0, 2.0]
    for number, loss in enumerate(given, 1):
        history.add_evaluation(len(losses) * number // len(given), measured(loss))
    record = replace(
        make_run(tmp_path / "other", steps=4, evaluations=1),
        settings=Resolved(total_steps=len(losses), max_length=128),
        dataset=DatasetStatus(),
        samples=SAMPLES,
        history=history,
        baseline=BASELINE,
        final=FINAL,
        compared_rows=100,
        answers=[],
        early_stopping=None,
        machine=MACHINE,
    )
    return replace(record, **changes)


def policy_history(tmp_path: Path, *, last: float = 0.75, **figures: float) -> History:
    """Eight steps, of which the figures are those of the last quarter alone."""
    history = History(tmp_path / "policy.jsonl")
    history.add_reward(reward_mean(0, [0.25] * 6 + [0.65] * 2, completion_length=9.0, clipped_share=0.25))
    plain = {"reward": 0.5, "kl": 0.01, "completion_length": 8.0, "clipped_share": 0.0, "flat_share": 0.0}
    for step in range(1, 9):
        own = plain | (figures if step > 6 else {})
        history.add_step(TrainPoint(step, step / 8, 0.1, 1e-4, 1.0, 50.0, 0.1, **own))
    history.set_final_reward(reward_mean(8, [last] * 8, completion_length=5.0, clipped_share=0.0))
    return history


def advice(run: RunRecord) -> str:
    return "\n".join(f"{found.advice} {found.evidence}" for found in recommend(run))


def test_a_good_run_gets_no_recommendation(tmp_path: Path) -> None:
    assert recommend(good_run(tmp_path)) == []


def test_a_gate_that_no_rule_explains_is_named_where_the_recommendations_are(tmp_path: Path) -> None:
    evaluation = EvaluationStatus(gate="NotMet", gate_message="80 % are correct, below minCorrect 90")
    result = tmp_path / "other"
    write_documents(good_run(tmp_path, evaluation=evaluation), result, {})
    report = (result / Artifact.REPORT).read_text()
    assert "The gate is not met, for the reason at the top. None of the report's rules applies" in report
    write_documents(good_run(tmp_path), result, {})
    assert "The gate is not met" not in (result / Artifact.REPORT).read_text()


def test_what_was_not_measured_is_not_called_better_and_not_free_of_faults(tmp_path: Path) -> None:
    """Without a measurement before the training, and with one evaluation, nothing is known of either."""
    run = replace(good_run(tmp_path, evaluations=[2.0], baseline=None), evaluation=EvaluationStatus())
    known = good_run(tmp_path / "known")
    assert recommend(run) == recommend(known) == []
    for record, words in ((known, True), (run, False)):
        write_documents(record, tmp_path / "other", {})
        report = (tmp_path / "other" / Artifact.REPORT).read_text()
        assert ("no overfitting, no gradient spikes" in report) is words
        assert ("and measurably better than the base model" in report) is words
        assert "None of the report's rules applies" in report


def test_a_tuned_model_that_is_worse_than_the_base_is_not_to_be_used(tmp_path: Path) -> None:
    message = advice(good_run(tmp_path, final=measured(3.3)))
    assert message.startswith("Do not use or publish this result: it is worse")
    assert "+10 % (95 % interval +" in message
    assert message.endswith("on 100 held-out rows")


def test_a_difference_within_its_interval_is_not_called_better(tmp_path: Path) -> None:
    near = tuple((loss + (0.5 if at % 2 else -0.52), weight) for at, (loss, weight) in enumerate(BASELINE.batches))
    message = advice(good_run(tmp_path, final=Measured(2.99, 100, batches=near)))
    assert message.startswith("Do not call this result better: train longer or with a higher learning rate. ")
    assert "hold out" not in message  # more rows than are measured
    near = tuple((loss + (0.5 if at % 2 else -0.9), weight) for at, (loss, weight) in enumerate(BASELINE.batches))
    message = advice(good_run(tmp_path, final=Measured(2.8, 100, batches=near)))
    assert "learning rate, and hold out about" in message


def test_a_model_that_overfits_is_not_to_be_trained_longer(tmp_path: Path) -> None:
    near = tuple((loss + (0.5 if at % 2 else -0.52), weight) for at, (loss, weight) in enumerate(BASELINE.batches))
    run = good_run(tmp_path, final=Measured(2.99, 100, batches=near), evaluations=[2.99, 3.0, 3.1, 3.2])
    first, second = recommend(run)
    assert (first.advice, second.advice[:19]) == ("Do not call this result better.", "Train fewer steps, ")


def test_figures_of_the_4_bit_base_alone_ask_for_a_measurement_as_served(tmp_path: Path) -> None:
    message = advice(good_run(tmp_path, served=Served(obstacle="the base in 16 bits needs 140.0 GiB")))
    assert message.startswith("Measure the adapter on the base that you will serve")
    assert message.endswith("the base in 16 bits needs 140.0 GiB")


def test_an_answer_that_misses_its_pattern_is_reported(tmp_path: Path) -> None:
    answers = [Answer("a?", "", "", is_expected=True), Answer("b?", "", "", is_expected=False)]
    message = advice(good_run(tmp_path, answers=answers))
    assert "Read the answers above: some do not match `expected`." in message
    assert "the tuned model's answer to prompt 2 does not match" in message


def test_less_than_one_epoch_is_reported_with_the_rows_that_were_read(tmp_path: Path) -> None:
    run = good_run(tmp_path, norms=[1.0] * 5, train=[2.0] * 5)
    assert "0.5 epochs: the training read 500 of 1000 rows" in advice(run)


def test_the_recommendation_that_concerns_most_comes_first(tmp_path: Path) -> None:
    samples = replace(SAMPLES, truncated_share=0.9, train_rows=190)
    first, second = recommend(good_run(tmp_path, samples=samples))
    assert (first.advice[:32], second.advice[:8]) == ("Raise hyperparameters.maxLength ", "Add rows")
    samples = replace(SAMPLES, truncated_share=0.06, train_rows=20)
    first, second = recommend(good_run(tmp_path, samples=samples))
    assert (first.advice[:8], second.advice[:32]) == ("Add rows", "Raise hyperparameters.maxLength ")


def test_an_early_minimum_and_a_later_rise_is_overfitting(tmp_path: Path) -> None:
    message = advice(good_run(tmp_path, evaluations=[2.2, 2.0, 2.1, 2.2]))
    assert "overfits" in message
    assert "step 10 of 20 (2) and rose since, +10 % (95 % interval +9.9 to +10 %)" in message


def test_a_rise_of_two_percent_or_a_late_minimum_is_not_overfitting(tmp_path: Path) -> None:
    assert "overfits" not in advice(good_run(tmp_path, evaluations=[2.0, 2.01, 2.02, 2.03]))
    assert "overfits" not in advice(good_run(tmp_path, evaluations=[2.6, 2.5, 2.0, 2.3]))


def test_losses_that_still_fall_at_the_end_ask_for_longer_training(tmp_path: Path) -> None:
    falling = [3.0 - 0.05 * step for step in range(20)]
    message = advice(good_run(tmp_path, train=falling, evaluations=[2.9, 2.7, 2.5, 2.3]))
    assert "Train longer" in message
    assert "evaluation loss -8.0 % (95 % interval -8.1 to -7.9 %) between the last two evaluations" in message


@pytest.mark.parametrize(("rise", "least", "most"), [(0.0, 0.0, 0.05), (0.15, 0.8, 1.0)])
def test_only_a_measurable_rise_is_overfitting(tmp_path: Path, rise: float, least: float, most: float) -> None:
    """Each of 20 rows wanders by 3 % between two evaluations; without a rise their mean is the same all the time."""
    run, draws, named, falls = good_run(tmp_path, train=[3.0 - 0.05 * step for step in range(20)]), 200, 0, 0
    for seed in range(draws):
        rng = random.Random(seed)
        rows, points = [rng.lognormvariate(0.6, 0.4) for _ in range(20)], []
        for step in range(2, 21, 2):
            rows = [row * (1 + rng.gauss(0, 0.03)) for row in rows]
            factor = 1 + rise * max(0, step - 6) / 14
            points.append(EvalPoint(step, token_mean([(row * factor, 100) for row in rows])))
        run.history.evaluations = points
        named += overfit(run) is not None
        falls += still_falling(run) is not None
    assert least <= named / draws <= most
    assert falls / draws <= 0.05


def test_early_stopping_prevents_the_advice_to_train_longer(tmp_path: Path) -> None:
    falling = [3.0 - 0.05 * step for step in range(20)]
    stopped = EarlyStoppingStatus(stopped=True, patience=3)
    run = good_run(tmp_path, train=falling, evaluations=[2.9, 2.7, 2.5, 2.3], early_stopping=stopped)
    assert "Train longer" not in advice(run)


def test_a_gradient_far_above_those_before_it_is_a_spike(tmp_path: Path) -> None:
    message = advice(good_run(tmp_path, norms=[*[1.0] * 15, 11.0, *[1.0] * 4]))
    assert "the gradient spikes" in message
    assert "1 of 20 steps" in message
    assert "highest norm 11" in message


def test_one_spike_in_a_long_training_is_none(tmp_path: Path) -> None:
    norms = [*[1.0] * 700, 11.0, *[1.0] * 499]
    assert "spikes" not in advice(good_run(tmp_path, train=[2.0] * 1200, norms=norms))


def test_a_run_without_one_finite_gradient_is_reported(tmp_path: Path) -> None:
    run = good_run(tmp_path, norms=[None] * 20)
    assert "0 of 0 steps above 10 times" in advice(run)
    assert advice(run).endswith("; 20 steps without a finite gradient")


def test_gradients_that_shrink_during_training_are_not_spikes(tmp_path: Path) -> None:
    assert "spikes" not in advice(good_run(tmp_path, norms=[100.0] * 5 + [1.0] * 15))


def test_steps_without_a_finite_gradient_are_reported(tmp_path: Path) -> None:
    assert "2 steps without a finite gradient" in advice(good_run(tmp_path, norms=[None, None, *[1.0] * 18]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"truncated_share": 0.051}, "Raise hyperparameters.maxLength to 192"),
        ({"labelled_share": 0.049}, "Check which tokens are trained"),
        ({"train_rows": 199}, "199 training rows, fewer than 200"),
        ({"validation_rows": 0}, "nothing was evaluated"),
    ],
)
def test_the_samples_are_judged(tmp_path: Path, change: dict[str, float], expected: str) -> None:
    values = {name: getattr(SAMPLES, name) for name in SampleStats.__slots__} | change
    assert expected in advice(good_run(tmp_path, samples=SampleStats(**values)))


@pytest.mark.parametrize(("skipped", "is_told"), [(50, False), (51, True)])
def test_rows_that_were_skipped_for_their_length_ask_for_a_longer_one(
    tmp_path: Path, skipped: int, is_told: bool
) -> None:
    """The length that is advised covers the skipped rows too, which are no samples."""
    counts = {"PROMPT_FILLS_CONTEXT": skipped, "BAD_JSON": 400}
    dataset = DatasetStatus(rows=1000, rejected_rows_by_code=counts, p99_length_tokens=700)
    message = advice(replace(good_run(tmp_path), dataset=dataset))
    assert (
        "Raise hyperparameters.maxLength to 704: rows whose prompt alone fills it are skipped." in message
    ) is is_told
    assert ("5.1 % of the rows have no token of an answer within 128 tokens" in message) is is_told


@pytest.mark.parametrize(("skipped", "is_told"), [(50, False), (51, True)])
def test_many_rows_that_the_job_skips_for_their_length_ask_for_a_longer_one(
    tmp_path: Path, skipped: int, is_told: bool
) -> None:
    dataset = DatasetStatus(rows=1000, rejected_rows_by_code={"OVER_MAX_LENGTH": skipped}, p99_length_tokens=700)
    message = advice(replace(good_run(tmp_path), dataset=dataset))
    assert ("Raise hyperparameters.maxLength to 704, which keeps 99 % of the rows." in message) is is_told
    assert ("5.1 % of the rows are skipped, because they have more than 128 tokens" in message) is is_told


@pytest.mark.parametrize(("lost", "is_named"), [(9, False), (10, True), (500, True)])
def test_reasoning_that_the_template_omits_is_reported_with_the_share_of_rows(
    tmp_path: Path, lost: int, *, is_named: bool
) -> None:
    dataset = DatasetStatus(rows=1100, accepted_rows=1000, repaired_rows_by_code={"REASONING_LOST": lost})
    message = advice(good_run(tmp_path, dataset=dataset))
    assert ("Set model.chatTemplate to one that writes the reasoning" in message) is is_named
    assert (f"omits the reasoning of answers in {lost} of 1000 rows ({lost / 10:.1f} %)" in message) is is_named


@pytest.mark.parametrize("shared", [None, {"share": 0.95, "begins": "Be *brief."}])
def test_questions_without_the_system_text_of_the_rows_are_reported(
    tmp_path: Path, shared: dict[str, Any] | None
) -> None:
    run = good_run(tmp_path)
    prompts = [Prompt(prompt="a?"), Prompt(prompt="b?", system="Be brief."), Prompt(prompt="c?")]
    evaluation = run.config.spec.evaluation.model_copy(update={"prompts": prompts})
    spec = run.config.spec.model_copy(update={"evaluation": evaluation})
    config = run.config.model_copy(update={"spec": spec})
    message = advice(replace(run, config=config, summary={"sharedSystem": shared} if shared else {}))
    expected = (
        "Set evaluation.prompts[].system to the system text of the rows: the answers above, and a gate on them, are "
        'without it. 95 % of the training rows have the system text "Be \\*brief.", and '
        r"evaluation.prompts\[0\] and \[2\] have none"
    )
    assert (expected in message) is bool(shared)


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (190, "Raise hyperparameters.maxLength to 190, which leaves 99 % of the rows whole."),
        (160, "the model's context is 160. Raise hyperparameters.maxLength to 160."),
        (128, "Shorten or split the rows: 99 % of them have up to 190 tokens, and the model's context is 128."),
    ],
)
def test_no_length_beyond_the_context_is_advised(tmp_path: Path, context: int, expected: str) -> None:
    samples = replace(SAMPLES, truncated_share=0.9, longest=128)
    message = advice(good_run(tmp_path, samples=samples, base=BaseFacts(context_length=context)))
    assert expected in message


@pytest.mark.parametrize(("context", "is_told"), [(199, True), (200, False), (None, False)])
def test_rows_beyond_the_context_are_reported(tmp_path: Path, context: int | None, *, is_told: bool) -> None:
    message = advice(good_run(tmp_path, base=BaseFacts(context_length=context)))
    assert (f"the longest sample has 200 tokens, more than the model's context of {context}" in message) is is_told


def test_too_few_held_out_rows_for_a_verdict_are_reported(tmp_path: Path) -> None:
    samples = replace(SAMPLES, validation_rows=4)
    few = {"baseline": measured(3.0, groups=4), "final": measured(2.0, groups=4), "compared_rows": 4}
    assert "Hold out 20 rows or more" in advice(good_run(tmp_path, samples=samples, **few))


def test_many_held_out_rows_of_a_few_prompts_ask_for_more_prompts(tmp_path: Path) -> None:
    owners = tuple((10, at // 10) for at in range(40))
    many = {"baseline": measured(3.0), "final": replace(measured(2.0), owners=owners), "compared_rows": 40}
    message = advice(good_run(tmp_path, **many))
    assert "Hold out rows of 20 or more different prompts" in message
    assert "100 validation rows; 4 different prompts were measured" in message


@pytest.mark.parametrize("mode", list(Mode))
def test_fewer_correct_answers_to_held_out_rows_are_reported(tmp_path: Path, mode: Mode) -> None:
    run = good_run(tmp_path, held_out=HeldOutAnswers(Ability([True] * 50, [True] * 20 + [False] * 30)))
    config = run.config.model_copy(update={"spec": run.config.spec.model_copy(update={"mode": mode})})
    message = advice(replace(run, config=config))
    assert message.startswith("Do not use this result for this task")
    assert "100.0 % → 40.0 % of 50" in message
    assert ("learning rate" in message) == (mode is Mode.TRAIN)


@pytest.mark.parametrize(
    ("rows", "shared", "is_named"), [(45, 20, True), (44, 20, False), (50, 36, False)], ids=["all", "fewer", "rows too"]
)
def test_one_answer_to_almost_all_rows_is_named(tmp_path: Path, rows: int, shared: int, *, is_named: bool) -> None:
    counted = Ability([False] * 50, [True] * 20 + [False] * 30)
    answers = HeldOutAnswers(counted, frequent=FrequentAnswer("billing", rows, shared))
    message = advice(good_run(tmp_path, held_out=answers))
    assert ('45 of 50 held-out rows got the answer "billing"' in message) is is_named
    assert ("Train for more steps" in message) is is_named


def test_a_gpu_that_is_half_empty_asks_for_larger_micro_batches(tmp_path: Path) -> None:
    idle = Machine("GPU", peak_memory_bytes=59, gpu_memory_bytes=100, seconds=1.0, versions={})
    assert "peak memory 59 % of the GPU's" in advice(good_run(tmp_path, machine=idle))
    on_cpu = Machine("CPU", peak_memory_bytes=59, gpu_memory_bytes=None, seconds=1.0, versions={})
    assert recommend(good_run(tmp_path, machine=on_cpu)) == []


@pytest.mark.parametrize(
    ("margin", "is_flat"), [(0.004, True), (-1.0, True), (0.05, False), (2.0, False), (None, False)]
)
def test_a_margin_that_does_not_grow_is_reported(tmp_path: Path, margin: float | None, is_flat: bool) -> None:
    message = advice(good_run(tmp_path, final=measured(0.69, reward_margin=margin)))
    assert ("the margin is flat" in message) == is_flat
    assert (f"mean margin {margin:.3g} after training" in message) if is_flat else message == ""


@pytest.mark.parametrize(
    ("liked", "weights", "message"),
    [
        (80, (1.0, 1.0), "Set kto.undesirableWeight to 4: one kind of answers outweighs the other."),
        (20, (1.0, 2.0), "Set kto.desirableWeight to 8: one kind of answers outweighs the other."),
        (80, (1.0, 4.0), ""),
        (60, (1.0, 1.0), ""),
        (100, (1.0, 1.0), "Add answers of the other kind"),
        (0, (1.0, 1.0), "0 desirable and 100 undesirable answers"),
    ],
)
def test_labelled_answers_of_one_kind_that_outweigh_the_other_are_reported_with_the_weight_to_set(
    tmp_path: Path, liked: int, weights: tuple[float, float], message: str
) -> None:
    run = good_run(tmp_path, samples=replace(SAMPLES, samples=100, desirable=liked))
    run.settings.desirable_weight, run.settings.undesirable_weight = weights
    found = advice(run)
    assert message in found
    assert bool(message) == bool(found)


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        ({"last": 0.35}, "Do not call this result better"),
        ({"last": -0.35}, "Do not use or publish this result"),
        ({"flat_share": 0.75}, "in 75 % of the last quarter's groups all answers had the same reward"),
        ({"clipped_share": 0.5}, "Raise rlhf.maxCompletionLength"),
        ({"kl": 1.5}, "1.5 nats per token from the reference in the last quarter, above 0.5"),
    ],
)
def test_rewards_that_go_wrong_get_one_recommendation(tmp_path: Path, figures: dict[str, float], sentence: str) -> None:
    (found,) = recommend(good_run(tmp_path, history=policy_history(tmp_path, **figures)))
    assert sentence in f"{found.advice} {found.evidence}"


def test_a_good_policy_gets_no_recommendation(tmp_path: Path) -> None:
    assert recommend(good_run(tmp_path, history=policy_history(tmp_path))) == []
