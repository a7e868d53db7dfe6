import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.checks.row_keys import prompt_key, seeded_rank
from finetune_trainer.data.checks.split import PromptSplit, Split
from finetune_trainer.data.rows import ChatRow, DataFormat, Message, Source


def row(prompt: str, answer: str = "a", system: str | None = None) -> ChatRow:
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return ChatRow(messages, Source("f", 1), DataFormat.OPENAI)


def split(rows: list[ChatRow], percent: int = 10, seed: int = 42) -> Split:
    splitter = PromptSplit(percent, seed)
    for one in rows:
        splitter.add_prompt(prompt_key(one))
    return splitter.close()


def is_held_out(result: Split, one: ChatRow) -> bool:
    return result.holds_out(prompt_key(one))


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=300),
    percent=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_a_prompt_never_lands_on_both_sides_and_the_bounds_hold(sizes: list[int], percent: int, seed: int) -> None:
    rows = [row(f"p{n}", f"a{k}") for n, size in enumerate(sizes) for k in range(size)]
    result = split(rows, percent, seed)
    held_out = {one.messages[0]["content"] for one in rows if is_held_out(result, one)}
    trained = {one.messages[0]["content"] for one in rows if not is_held_out(result, one)}
    assert held_out.isdisjoint(trained)
    assert sum(is_held_out(result, one) for one in rows) == result.validation_rows
    assert result.train_rows + result.validation_rows == len(rows)
    assert result.validation_rows == 0 or 20 <= result.validation_rows <= min(512, len(rows) // 2)
    assert (result.validation_rows == 0) == (result.warning is not None)
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert split(shuffled, percent, seed) == result


@pytest.mark.parametrize(
    ("rows", "percent", "expected"), [(40, 10, 20), (1000, 10, 100), (1000, 1, 20), (9000, 10, 512)]
)
def test_the_share_is_kept_within_20_and_512_rows(rows: int, percent: int, expected: int) -> None:
    assert split([row(f"p{n}") for n in range(rows)], percent).validation_rows == expected


@pytest.mark.parametrize(
    ("prompts", "size", "expected"),
    [(1000, 1, 100), (150, 4, 15), (60, 8, 10), (40, 16, 10), (24, 8, 6), (8, 16, 2), (100, 60, 8)],
)
def test_rows_of_ten_prompts_are_held_out_or_of_a_quarter_of_them_within_the_limits(
    prompts: int, size: int, expected: int
) -> None:
    rows = [row(f"p{n}", f"a{k}") for n in range(prompts) for k in range(size)]
    assert len(split(rows).validation_prompts) == expected


def test_under_40_rows_nothing_is_held_out_and_a_warning_is_logged() -> None:
    result = split([row(f"p{n}") for n in range(39)])
    assert result.validation_rows == 0
    assert result.warning is not None
    assert "39 rows are too few" in result.warning


def test_rows_of_one_prompt_cannot_be_split_and_a_warning_is_logged() -> None:
    result = split([row("p", f"a{n}") for n in range(100)])
    assert (result.train_rows, result.validation_rows) == (100, 0)
    assert result.warning is not None


def test_without_a_percentage_there_is_no_split_and_no_warning() -> None:
    assert split([row(f"p{n}") for n in range(100)], percent=0) == Split(frozenset(), 100, 0)


def test_another_seed_holds_out_other_prompts() -> None:
    rows = [row(f"p{n}") for n in range(200)]
    assert split(rows, seed=1).validation_prompts != split(rows, seed=2).validation_prompts


def test_case_spacing_and_system_text_make_no_new_prompt() -> None:
    rows = [row(f"P{n}  x", f"a{k}", system) for n in range(60) for k, system in enumerate((None, "s"))]
    result = split([*rows, *(row(f" p{n} X") for n in range(60))])
    assert all(is_held_out(result, row(f"p{n} x")) == is_held_out(result, row(f"P{n}  X")) for n in range(60))


def test_prompts_are_taken_in_their_seeded_order_however_many_are_passed_over() -> None:
    """Seventeen prompts of thirty rows fill the split but for two rows, for which no other prompt is small enough."""
    splitter, prompts = PromptSplit(50, 7), range(9_000)
    for prompt in prompts:
        for _ in range(30):
            splitter.add_prompt(prompt)
    found = splitter.close()
    first = sorted(prompts, key=lambda prompt: seeded_rank(prompt, 7))[:17]
    assert (found.validation_prompts, found.validation_rows) == (frozenset(first), 510)
