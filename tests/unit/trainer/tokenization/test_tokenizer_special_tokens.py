import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.tokenization.tokenizer import special_token_pattern


@given(st.lists(st.text("<|ab>.*", max_size=6), max_size=12), st.text("<|ab>.*", max_size=40))
def test_the_longest_of_the_tokens_is_found_at_its_position(tokens: list[str], text: str) -> None:
    one_by_one = "|".join(map(re.escape, sorted(filter(None, tokens), key=len, reverse=True))) or "(?!)"
    assert special_token_pattern(tokens).findall(text) == re.findall(one_by_one, text)


@pytest.mark.parametrize("tokens", [[], [""]])
def test_without_tokens_nothing_is_found(tokens: list[str]) -> None:
    assert special_token_pattern(tokens).search("<eos>") is None


def test_tokens_of_any_length_and_nesting_are_found() -> None:
    nested = ["<" * count for count in range(1, 520)]
    for tokens in (nested, ["<" + "x" * 10_000 + ">"]):
        found = special_token_pattern(tokens).search(f"a {tokens[-1]} b")
        assert found is not None
        assert found.group() == tokens[-1]
