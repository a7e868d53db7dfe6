import random
from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.objectives import Objective
from finetune_api.spec import Packing
from finetune_trainer.errors import TrainerError
from finetune_trainer.tokenization.packing import MAX_ROWS, PADDED, count_packed, fold_rows, group_lengths


def lengths_of(groups: list[list[int]], lengths: list[int]) -> list[int]:
    return [sum(lengths[at] for at in group) for group in groups]


def test_every_sample_is_in_one_sequence_and_none_is_longer_than_the_limit() -> None:
    source = random.Random(3)
    lengths = [source.randint(1, 200) for _ in range(2000)]
    groups = group_lengths(lengths, 256)
    assert sorted(at for group in groups for at in group) == list(range(2000))
    assert max(lengths_of(groups, lengths)) <= 256
    assert max(len(group) for group in groups) <= MAX_ROWS


def test_sequences_are_nearly_full() -> None:
    source = random.Random(3)
    lengths = [source.randint(1, 200) for _ in range(2000)]
    assert sum(lengths) / (256 * len(group_lengths(lengths, 256, None))) > 0.98


def test_a_sample_goes_where_the_least_room_remains() -> None:
    assert group_lengths([6, 5, 3, 4, 2], 10) == [[0, 3], [1, 2, 4]]


def test_the_same_lengths_give_the_same_sequences() -> None:
    lengths = [7, 3, 3, 9, 1, 3, 7] * 20
    assert group_lengths(lengths, 16) == group_lengths(list(lengths), 16)


def test_a_hundred_thousand_rows_take_as_many_sequences_as_their_tokens_need() -> None:
    source = random.Random(5)
    lengths = [source.randint(10, 300) for _ in range(100_000)]
    assert len(group_lengths(lengths, 2048, None)) <= 1.01 * sum(lengths) / 2048


def test_nothing_is_packed_from_nothing() -> None:
    assert group_lengths([], 16) == []


def padded(lines: list[list[int]], lengths: list[int]) -> int:
    return len(lines) * max(lengths_of(lines, lengths))


def test_rows_of_a_batch_are_laid_into_short_lines_that_hold_each_once_and_hardly_any_padding() -> None:
    source = random.Random(3)
    lengths = [source.randint(20, 40) for _ in range(16)]
    lines = fold_rows([lengths], 2048)
    assert sorted(at for line in lines for at in line) == list(range(16))
    assert padded(lines, lengths) <= PADDED * sum(lengths)
    assert max(lengths_of(lines, lengths)) <= 0.4 * sum(lengths)


@pytest.mark.parametrize("seed", range(50))
def test_a_batch_is_never_larger_than_its_sequences_may_be(seed: int) -> None:
    source = random.Random(seed)
    lengths = [source.randint(1, 100) for _ in range(source.randint(1, 60))]
    sequences = [[lengths[at] for at in group] for group in group_lengths(lengths, 100)]
    flat = [length for sequence in sequences for length in sequence]
    lines = fold_rows(sequences, 100 * len(sequences))
    assert sorted(at for line in lines for at in line) == list(range(len(flat)))
    assert padded(lines, flat) <= 100 * len(sequences)


def test_sequences_that_no_shorter_lines_can_hold_stay_as_they_are() -> None:
    assert fold_rows([[9, 1], [7, 3]], 20) == [[0, 1], [2, 3]]
    assert fold_rows([[90, 5]], 95) == [[0, 1]]


def count(lengths: list[int], asked: str = "Auto", objective: str = "Chat", model_type: str = "llama") -> int | None:
    return count_packed(lengths, 100, Objective(objective), Packing(asked), model_type)


def test_auto_packs_where_two_rows_share_a_sequence_on_average() -> None:
    assert count([50] * 10) == 5
    assert count([50] * 9 + [60]) is None


def test_auto_packs_plain_text_however_long_it_is() -> None:
    assert count([60] * 4, objective="DomainAdaptation") == 4


def test_sixteen_rows_share_a_sequence_and_plain_text_any_number() -> None:
    assert count([1] * 16) == 1
    assert count([1] * 17) == 2
    assert count([1] * 100, objective="DomainAdaptation") == 1


def test_rows_are_packed_always_or_never_if_the_job_sets_it() -> None:
    assert count([10] * 10, "Never") is None
    assert count([60] * 10, "Always") == 10


@pytest.mark.parametrize("objective", ["DPO", "KTO", "RewardModel", "RLHF"])
def test_pairs_and_prompts_are_never_packed(objective: str) -> None:
    assert count([10] * 10, objective=objective) is None


@pytest.mark.parametrize("model_type", ["mamba", "opt", "bloom", "qwen3_next", ""])
def test_a_model_whose_attention_is_not_known_to_keep_rows_apart_is_not_packed(model_type: str) -> None:
    assert count([10] * 10, model_type=model_type) is None
    with pytest.raises(TrainerError, match=r"packing Always: rows .* set packing Never or Auto") as caught:
        count([10] * 10, "Always", model_type=model_type)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_samples_may_not_be_counted_before_there_are_any() -> None:
    nothing: list[Any] = []
    assert count(nothing, "Always") is None
