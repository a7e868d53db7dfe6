"""Sources are blended by weight and limit, and the same seed gives the same blend."""

from itertools import islice

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.inputs.sources import BlendSource, Sample, StoppingStrategy
from finetune_trainer.data.blend import Part, blend, choose_rows, take_turns
from finetune_trainer.errors import TrainerError

FIRST, ALL = StoppingStrategy.FIRST_EXHAUSTED, StoppingStrategy.ALL_EXHAUSTED


def source(name: str = "a", **fields: object) -> BlendSource:
    return BlendSource.model_validate({"uri": f"s3://bucket/{name}.jsonl"} | fields)


def part(sizes: list[int], weight: float | None = None, place: str = "dataset.train.sources[0]") -> Part:
    return Part(place, weight, sizes, range(len(sizes)))


def tokens(parts: list[Part], strategy: StoppingStrategy = FIRST) -> list[int]:
    found = blend(parts, strategy)
    return [sum(map(int.__mul__, times, one.sizes)) for one, times in zip(parts, found, strict=True)]


def test_without_weights_every_row_is_used_once() -> None:
    assert [list(times) for times in blend([part([5, 7]), part([1])], FIRST)] == [[1, 1], [1]]


@pytest.mark.parametrize("weights", [(3, 1), (0.75, 0.25), (300, 100)])
def test_weights_are_shares_whatever_they_add_up_to(weights: tuple[float, float]) -> None:
    assert tokens([part([1] * 600, weights[0]), part([1] * 600, weights[1])]) == [600, 200]


def test_the_blend_ends_with_the_first_exhausted_source_and_uses_no_row_twice() -> None:
    found = blend([part([1] * 1000, 1), part([1] * 30, 2), part([1] * 500, 1)], FIRST)
    assert [sum(times) for times in found] == [15, 30, 15]
    assert {time for times in found for time in times} == {0, 1}


def test_until_all_are_exhausted_rows_of_smaller_sources_are_repeated_evenly() -> None:
    large, small = blend([part([1] * 1000, 1), part([1] * 30, 1)], ALL)
    assert (sum(large), sum(small)) == (1000, 1000)
    assert set(large) == {1}
    assert set(small) == {33, 34}


def test_proportions_are_of_tokens_if_rows_are_sized_by_tokens() -> None:
    long, short = tokens([part([100] * 50, 1), part([3] * 5000, 1)])
    assert long == 5000
    assert abs(short - 5000) <= 3 / 2


@pytest.mark.parametrize("weights", [(1, 2, 4), (0.1, 0.2, 0.7), (7, 11, 13)])
def test_a_share_differs_by_half_a_row_at_most(weights: tuple[float, ...]) -> None:
    sizes = [[17 + at % 5 for at in range(900)], [40 + at % 30 for at in range(700)], [3] * 40_000]
    for strategy in (FIRST, ALL):
        found = tokens([part(one, weight) for one, weight in zip(sizes, weights, strict=True)], strategy)
        units = [sum(one) / weight for one, weight in zip(sizes, weights, strict=True)]
        unit = min(units) if strategy is FIRST else max(units)
        for one, got, weight in zip(sizes, found, weights, strict=True):
            assert abs(got - weight * unit) <= max(one) / 2, (strategy, found)


def test_a_source_whose_weight_leaves_it_no_row_is_refused() -> None:
    with pytest.raises(TrainerError) as error:
        blend([part([1] * 10, 1), part([500] * 10, 1, "dataset.train.sources[1]")], FIRST)
    assert error.value.code is ExitCode.DATASET_UNUSABLE
    assert error.value.message.startswith("spec.dataset.train.sources[1].weight leaves no row of this source")


def test_rows_that_would_be_repeated_too_often_are_refused() -> None:
    with pytest.raises(TrainerError) as error:
        blend([part([1] * 5000, 1), part([1] * 10, 1, "dataset.train.sources[1]")], ALL)
    assert "spec.dataset.train.sources[1].weight repeats each row 500 times, more than 100" in error.value.message


def test_a_source_is_used_in_file_order_up_to_its_limit() -> None:
    assert list(choose_rows(10, source(), 1)) == list(range(10))
    assert list(choose_rows(10, source(maxSamples=4), 1)) == [0, 1, 2, 3]
    assert list(choose_rows(3, source(maxSamples=4), 1)) == [0, 1, 2]


def test_random_rows_are_chosen_by_the_seed_and_the_source_alone() -> None:
    chosen = list(choose_rows(1000, source(maxSamples=100, sample=Sample.RANDOM), 7))
    assert len(set(chosen)) == 100
    assert max(chosen) > 900
    assert chosen == list(choose_rows(1000, source(maxSamples=100, sample=Sample.RANDOM), 7))
    assert chosen != list(choose_rows(1000, source(maxSamples=100, sample=Sample.RANDOM), 8))
    assert chosen != list(choose_rows(1000, source("b", maxSamples=100, sample=Sample.RANDOM), 7))


def test_sources_take_turns_in_proportion() -> None:
    turns = list(take_turns([6, 2, 0, 1]))
    assert [turns.count(at) for at in range(4)] == [6, 2, 0, 1]
    assert list(islice(take_turns([4]), 4)) == [0, 0, 0, 0]
    assert [turns[:5].count(at) for at in range(2)] == [3, 1]
