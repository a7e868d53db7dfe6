"""The verdict: a paired difference with its interval, over simulated measurements."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.comparing.comparison import Comparison, Parts, compare
from finetune_api.comparing.groups import count_groups
from finetune_api.evaluation import EvaluationMetric, Verdict
from finetune_trainer.evaluation.verdict import describe, to_status

LOSS, REWARD = EvaluationMetric.LOSS, EvaluationMetric.REWARD


def simulate(rows: int, shift: float, noise: float, seed: int = 1) -> tuple[Parts, Parts]:
    """Rows whose losses differ far more from each other than before from after."""
    rng = random.Random(seed)
    before = [(rng.uniform(0.5, 6.0), rng.randint(5, 400)) for _ in range(rows)]
    after = [(loss + shift + rng.gauss(0, noise), tokens) for loss, tokens in before]
    return before, after


def judge(rows: int, shift: float, noise: float, metric: EvaluationMetric = LOSS) -> Comparison:
    found = compare(metric, *simulate(rows, shift, noise))
    assert found
    return found


@pytest.mark.parametrize(
    ("rows", "shift", "noise", "metric", "verdict"),
    [
        (40, -0.3, 0.2, LOSS, Verdict.BETTER),
        (40, 0.3, 0.2, LOSS, Verdict.WORSE),
        (40, 0.0, 0.2, LOSS, Verdict.NO_MEASURABLE_DIFFERENCE),
        (40, -0.0001, 0.03, LOSS, Verdict.NO_MEASURABLE_DIFFERENCE),
        (40, 0.3, 0.2, REWARD, Verdict.BETTER),
        (40, -0.3, 0.2, REWARD, Verdict.WORSE),
        (5, -0.3, 0.1, LOSS, Verdict.BETTER),
        (5, -0.3, 0.6, LOSS, Verdict.NO_MEASURABLE_DIFFERENCE),
        (4, -3.0, 0.0, LOSS, Verdict.NOT_EVALUATED),
        (512, -0.02, 0.1, LOSS, Verdict.BETTER),
    ],
)
def test_only_an_interval_without_zero_is_better_or_worse(
    rows: int, shift: float, noise: float, metric: EvaluationMetric, verdict: Verdict
) -> None:
    assert judge(rows, shift, noise, metric).verdict == verdict


def test_a_difference_that_rounding_can_make_is_none_however_narrow_its_interval() -> None:
    found = judge(512, -0.0005, 0.0)
    assert found.high is not None
    assert found.high < 0
    assert found.verdict is Verdict.NO_MEASURABLE_DIFFERENCE


def test_a_difference_of_rewards_with_an_offset_is_one() -> None:
    """Rewards have no zero that rounding could be relative to."""
    before = [(100.0 + at % 7, 1) for at in range(100)]
    after = [(reward + 0.05 + 0.001 * (at % 3), 1) for at, (reward, _) in enumerate(before)]
    assert (found := compare(REWARD, before, after))
    assert found.verdict is Verdict.BETTER


def test_pairing_shows_a_difference_far_below_the_spread_of_the_rows() -> None:
    found = judge(60, -0.05, 0.05)
    assert found.verdict is Verdict.BETTER
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low < 0.06


@pytest.mark.parametrize("rows", [5, 8, 30])
@pytest.mark.parametrize("spread", [0.0, 1.0, 1.5])
def test_a_model_that_is_unchanged_is_called_better_or_worse_in_one_run_of_twenty(rows: int, spread: float) -> None:
    """The longest of the answers has often more tokens than all others together if the spread of lengths is 1.5."""
    draws = 1500
    wrong = 0
    for seed in range(draws):
        rng = random.Random(seed)
        before = [(rng.uniform(1, 5), math.ceil(100 * rng.lognormvariate(0, spread))) for _ in range(rows)]
        after = [(loss + rng.gauss(0, 0.5), count) for loss, count in before]
        found = compare(LOSS, before, after)
        wrong += bool(found and not found.low <= 0 <= found.high)  # type: ignore[operator]
    assert (0.025 if spread == 0.0 else 0.01) < wrong / draws < 0.06


def test_the_best_of_many_equal_models_is_called_better_in_at_most_one_run_of_twenty() -> None:
    draws, choices, wrong = 400, 10, 0
    for seed in range(draws):
        rng = random.Random(seed)
        before = [(rng.uniform(1, 5), 100) for _ in range(40)]
        tries = [[(loss + rng.gauss(0, 0.5), count) for loss, count in before] for _ in range(choices)]
        best = min(tries, key=lambda parts: sum(loss for loss, _ in parts))
        found = compare(LOSS, before, best, choices)
        wrong += bool(found and found.high is not None and found.high < 0)
    assert wrong / draws <= 0.05


def test_a_worse_model_is_called_so_however_many_evaluations_it_was_chosen_from() -> None:
    """The best of several is too good by chance, and never too bad."""
    worse = [compare(LOSS, *simulate(30, 0.02, 0.05), choices) for choices in (1, 20)]
    better = [compare(LOSS, *simulate(30, -0.02, 0.05), choices) for choices in (1, 20)]
    assert [one and one.verdict for one in worse] == [Verdict.WORSE, Verdict.WORSE]
    assert [one and one.verdict for one in better] == [Verdict.BETTER, Verdict.NO_MEASURABLE_DIFFERENCE]
    rewards = [compare(REWARD, *simulate(30, -0.02, 0.05), choices) for choices in (1, 20)]
    assert [one and one.verdict for one in rewards] == [Verdict.WORSE, Verdict.WORSE]


@pytest.mark.parametrize("shifts", [[0.0] * 10, [0.0, 0.2, 0.4], [0.01 * at for at in range(10)]])
def test_the_interval_of_the_best_of_many_has_its_difference_in_nineteen_of_twenty_runs(shifts: list[float]) -> None:
    draws, above, below = 600, 0, 0
    for seed in range(draws):
        rng = random.Random(seed)
        before = [(rng.uniform(1, 5), 100) for _ in range(20)]
        tries = [(shift, [(loss + shift + rng.gauss(0, 0.3), count) for loss, count in before]) for shift in shifts]
        shift, best = min(tries, key=lambda one: sum(loss for loss, _ in one[1]))
        found = compare(LOSS, before, best, len(shifts))
        assert found
        assert found.low is not None
        assert found.high is not None
        above, below = above + (found.high < shift), below + (found.low > shift)
    assert above / draws < 0.04
    assert below / draws < 0.04


@pytest.mark.parametrize("prompts", [5, 8, 20])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
def test_rewards_of_zero_and_one_have_an_interval_even_if_none_changes(prompts: int, share: float) -> None:
    draws, wrong, rng = 1000, 0, random.Random(2)
    for _ in range(draws):
        before, after = ([(float(rng.random() < share), 1) for _ in range(prompts)] for _ in range(2))
        found = compare(REWARD, before, after)
        assert found
        assert found.low is not None
        assert found.high is not None
        assert found.high - found.low > 0.5 / prompts
        wrong += found.verdict is not Verdict.NO_MEASURABLE_DIFFERENCE
    assert wrong / draws < 0.05


@pytest.mark.parametrize(("gained", "prompts", "verdict"), [
    (5, 5, Verdict.NO_MEASURABLE_DIFFERENCE), (6, 6, Verdict.BETTER), (5, 40, Verdict.NO_MEASURABLE_DIFFERENCE),
    (6, 40, Verdict.BETTER),
])  # fmt: skip
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_five_prompts_that_gain_can_be_chance(gained: int, prompts: int, verdict: Verdict, weight: float) -> None:
    """McNemar's test: in one of 32 cases all five changes are gains, and in one of 32 all are losses."""
    after = [(weight * (at < gained), 1) for at in range(prompts)]
    found = compare(REWARD, [(0.0, 1)] * prompts, after)
    assert found
    assert found.verdict is verdict


def test_rewards_of_prompts_that_belong_together_have_an_interval_even_if_none_changes() -> None:
    found = compare(REWARD, [(0.0, 1)] * 20, [(0.0, 1)] * 20, owners=[(1, at // 2) for at in range(20)])
    alone = compare(REWARD, [(0.0, 1)] * 10, [(0.0, 1)] * 10)
    assert found
    assert alone
    assert (found.groups, found.low, found.high) == (10, alone.low, alone.high)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 500)), min_size=10, max_size=60), st.integers(1, 4), st.data()
)
def test_batches_of_another_size_give_the_same_difference(
    rows: list[tuple[float, int]], size: int, data: st.DataObject
) -> None:
    after = [(loss * data.draw(st.floats(0.5, 1.5)), tokens) for loss, tokens in rows]
    whole, joined = compare(LOSS, rows, after), compare(LOSS, rows, _join(after, size))
    assert whole
    assert joined
    assert joined.difference == pytest.approx(whole.difference, abs=1e-9)
    assert joined.groups == -(-len(rows) // size)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 500)), min_size=5, max_size=40), st.integers(1, 4))
def test_rows_with_a_prompt_of_their_own_have_the_same_interval_with_their_prompts(
    rows: list[tuple[float, int]], size: int
) -> None:
    before, after = _join(rows, size), [(loss * loss / 5, tokens) for loss, tokens in rows]
    owners = [(tokens, at) for at, (_, tokens) in enumerate(rows)]
    assert compare(LOSS, before, after, 3, owners) == compare(LOSS, before, after, 3)


@pytest.mark.parametrize("size", [1, 4])
def test_samples_of_a_few_long_rows_are_no_independent_rows(size: int) -> None:
    """20 documents of 10 samples, each of which the training changes by chance; on average it changes nothing."""
    chance, draws, wrong = random.Random(1), 300, 0
    owners = [(500, at // 10) for at in range(200)]
    before = [(3.0, 500)] * 200
    for _ in range(draws):
        shifts = [chance.gauss(0, 0.05) for _ in range(20)]
        after = [(3.0 + shift + chance.gauss(0, 0.05), 500) for shift in shifts for _ in range(10)]
        found = compare(LOSS, _join(before, size), _join(after, size), owners=owners)
        assert found
        assert found.groups == (20 if size == 1 else 10)
        wrong += found.verdict in {Verdict.BETTER, Verdict.WORSE}
    assert 0.02 < wrong / draws < 0.085


def test_samples_of_four_rows_have_no_interval() -> None:
    before, after = [(3.0, 100)] * 40, [(2.0, 100)] * 40
    found = compare(LOSS, before, after, owners=[(100, at // 10) for at in range(40)])
    assert found
    assert (found.groups, found.verdict, found.after) == (4, Verdict.NOT_EVALUATED, 2.0)


@pytest.mark.parametrize(
    ("prompts", "answers", "order"),
    [(6, 7, "neighbours"), (15, 3, "neighbours"), (15, 3, "shuffled"), (20, 8, "shuffled"), (40, 1, "shuffled")],
)
def test_several_rows_of_a_prompt_are_called_better_or_worse_in_one_run_of_twenty(
    prompts: int, answers: int, order: str
) -> None:
    """Ranked answers: every pair has the prompt's best answer, so that its difference is in all of them."""
    draws, wrong = 1500, 0
    for seed in range(draws):
        rng = random.Random(seed)
        rows = [prompt for prompt in range(prompts) for _ in range(answers)]
        if order == "shuffled":
            rng.shuffle(rows)
        best = [rng.gauss(0, 0.1) for _ in range(prompts)]
        after = [(0.693 + best[prompt] - rng.gauss(0, 0.1), 1) for prompt in rows]
        found = compare(LOSS, [(0.693, 1)] * len(rows), after, owners=[(1, prompt) for prompt in rows])
        assert found
        assert found.groups == prompts
        wrong += found.verdict in {Verdict.BETTER, Verdict.WORSE}
    assert 0.025 < wrong / draws < 0.065


@pytest.mark.parametrize(("rows", "others"), [(16, 40), (60, 40), (200, 20)])
def test_a_prompt_with_many_of_the_rows_makes_no_difference_by_itself(rows: int, others: int) -> None:
    """Its own change, by chance, is that of all its rows."""
    draws, wrong = 600, 0
    prompts = [0] * rows + [*range(1, others + 1)]
    for seed in range(draws):
        rng = random.Random(seed)
        changes = [rng.gauss(0, 0.1) for _ in range(others + 1)]
        after = [(0.693 + changes[prompt] + rng.gauss(0, 0.1), 1) for prompt in prompts]
        found = compare(LOSS, [(0.693, 1)] * len(prompts), after, owners=[(1, prompt) for prompt in prompts])
        assert found
        wrong += found.verdict in {Verdict.BETTER, Verdict.WORSE}
    assert wrong / draws < 0.065


def test_batches_that_share_prompts_by_way_of_others_are_one_group() -> None:
    before = [(1.0, 2)] * 8
    owners = [(1, prompt) for prompt in (0, 1, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 9, 9)]
    found = compare(LOSS, before, [(loss + 0.1 * at, count) for at, (loss, count) in enumerate(before)], owners=owners)
    assert found
    assert found.groups == 7


@pytest.mark.parametrize(("size", "groups"), [(1, 3), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_the_groups_of_a_batch_size_share_no_prompt(size: int, groups: int) -> None:
    assert count_groups(size, [5, 5, 6, 7, 7, 7]) == groups


def test_samples_of_another_weight_than_the_batches_are_one_group() -> None:
    found = compare(LOSS, [(1.0, 1)] * 8, [(2.0, 1)] * 8, owners=[(1, 0)] * 9)
    assert found
    assert (found.groups, found.verdict) == (1, Verdict.NOT_EVALUATED)


def _join(parts: Parts, size: int) -> Parts:
    """What a measurement in batches of so many rows notes."""
    joined = []
    for some in (parts[at : at + size] for at in range(0, len(parts), size)):
        weight = sum(count for _, count in some)
        joined.append((sum(mean * count for mean, count in some) / weight, weight))
    return joined


def test_other_rows_are_not_compared() -> None:
    assert compare(LOSS, [(1.0, 10)] * 8, [(1.0, 10)] * 9) is None
    assert compare(LOSS, [], [(1.0, 10)]) is None
    assert compare(LOSS, [(1.0, 0)], [(2.0, 0)]) is None


@pytest.mark.parametrize(
    ("comparison", "sentence"),
    [
        (
            Comparison(LOSS, 4.19, 2.88, -1.39, -1.23, 40),
            "better than the base model: held-out loss 4.19 → 2.88, -31 % (95 % interval -33 to -29 %)",
        ),
        (
            Comparison(LOSS, 3.0, 3.3, 0.2, 0.4, 40),
            "worse than the base model: held-out loss 3 → 3.3, +10 % (95 % interval +6.7 to +13 %)",
        ),
        (
            Comparison(REWARD, 0.1, 0.4, 0.25, 0.35, 40),
            "better than the base model: held-out reward 0.1 → 0.4, +0.3 (95 % interval +0.25 to +0.35)",
        ),
        (
            Comparison(LOSS, 3.2, 3.168, -0.064, 0.001, 40),
            "no measurable difference from the base model: held-out loss 3.2 → 3.17, -1.0 % (95 % interval -2.0 to "
            "+0.03 %); about 86 held-out rows would probably show a difference of this size",
        ),
        (
            Comparison(LOSS, 2.0, 1.99, -0.03, 0.01, 40),
            "no measurable difference from the base model: held-out loss 2 → 1.99, -0.5 % (95 % interval -1.5 to "
            "+0.5 %); about 320 held-out rows would probably show a difference of this size",
        ),
        (
            Comparison(LOSS, 2.0, 1.99, -0.05, 0.03, 40),
            "no measurable difference from the base model: held-out loss 2 → 1.99, -0.5 % (95 % interval -2.5 to "
            "+1.5 %); a difference of this size may not show in the 512 held-out rows that are measured at most",
        ),
        (
            Comparison(LOSS, 3.2, 3.2, -0.031, 0.031, 40),
            "no measurable difference from the base model: held-out loss 3.2 → 3.2, 0.0 % (95 % interval -1.0 to "
            "+1.0 %)",
        ),
        (
            Comparison(LOSS, 3.0, 1.5, groups=3),
            "not evaluated: 40 held-out rows are too few for an interval (held-out loss 3 → 1.5, -50 %); hold out 20 "
            "or more",
        ),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence_with_its_interval(comparison: Comparison, sentence: str) -> None:
    assert describe(comparison, start="base model", rows=40) == sentence


def test_few_prompts_are_stated_with_the_fix() -> None:
    found = describe(Comparison(LOSS, 3.0, 1.5, groups=4), start="base model", rows=60, prompts=4)
    assert found == (
        "not evaluated: 60 held-out rows of 4 different prompts or conversations are too few for an interval (held-out "
        "loss 3 → 1.5, -50 %); hold out rows of 20 or more"
    )


@pytest.mark.parametrize("most", [512, 128])
def test_no_more_rows_are_advised_than_are_measured(most: int) -> None:
    found = Comparison(LOSS, 2.0, 1.99, -0.035, 0.015, 40)
    sentence = describe(found, start="base model", rows=20, most=most)
    assert ("about 250 held-out rows would probably show" in sentence) == (most >= 250)
    assert "about" not in describe(found, start="base model", rows=40, most=128)
    assert "in the 128 held-out rows that are measured at most" in describe(
        found, start="base model", rows=40, most=128
    )


def test_the_advised_rows_show_the_difference_in_four_of_five_measurements() -> None:
    half = 1.96 * 0.2 / math.sqrt(20)
    advised = Comparison(LOSS, 3.0, 2.96, -0.04 - half, -0.04 + half, 20).advise_rows(20)
    assert advised
    better, draws, rng = 0, 300, random.Random(1)
    for _ in range(draws):
        found = compare(LOSS, [(3.0, 100)] * advised, [(rng.gauss(2.96, 0.2), 100) for _ in range(advised)])
        better += bool(found and found.verdict is Verdict.BETTER)
    assert 0.7 < better / draws < 0.9


def test_the_advice_counts_the_prompts_of_the_rows_too() -> None:
    found = Comparison(LOSS, 2.0, 1.99, -0.03, 0.01, 10)
    assert describe(found, start="base model", rows=40, prompts=10).endswith(
        "; about 320 held-out rows of 80 different prompts would probably show a difference of this size"
    )


def test_without_figures_the_sentence_has_the_reason() -> None:
    assert describe(None, start="base model", rows=0) == "not evaluated: no rows were held out"
    judged = Comparison(LOSS, 3.0, 1.5, -1.6, -1.4, 40)
    assert describe(judged, start="base model", rows=40, obstacle="it needs 16 GiB") == "not evaluated: it needs 16 GiB"


def test_the_status_has_every_figure_of_the_verdict() -> None:
    status = to_status(Comparison(LOSS, 4.0, 3.0, -1.2, -0.8, 40), "detail", 40, "Adapter")
    assert status.model_dump(exclude_none=True) == {
        "verdict": "Better", "change": "-25 %", "metric": "Loss", "before": 4.0, "after": 3.0, "difference": -1.0,
        "difference_low": -1.2, "difference_high": -0.8, "rows": 40, "served_as": "Adapter",
        "verdict_message": "detail",
    }  # fmt: skip
    unclear = [Comparison(LOSS, 4.0, 3.99, -0.1, 0.08, 40), Comparison(LOSS, 4.0, 3.99)]
    assert [to_status(one, "", 40, "Adapter").change for one in unclear] == ["-0.2 % (not measurable)"] * 2
    assert to_status(None, "why", 0, "Adapter").model_dump(exclude_none=True) == {
        "verdict": "NotEvaluated", "verdict_message": "why",
    }  # fmt: skip


def test_more_rows_narrow_the_interval() -> None:
    widths = [(found.high or 0) - (found.low or 0) for found in (judge(rows, -0.3, 0.3) for rows in (10, 50, 250))]
    assert all(narrow < wide for wide, narrow in pairwise(widths))
