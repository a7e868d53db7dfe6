from dataclasses import dataclass
from typing import Any

from finetune_trainer.tokenization.token_spans import token_spans


@dataclass
class Offsets:
    offsets: list[tuple[int, int]]


def test_a_token_without_characters_before_an_answer_is_not_part_of_it() -> None:
    encoding: Any = Offsets([(0, 2), (2, 2), (2, 4), (4, 5)])
    assert token_spans(encoding, "abcd ", [(2, 4)]) == [(2, 3)]


def test_the_last_token_may_reach_over_spaces_but_not_over_text() -> None:
    encoding: Any = Offsets([(0, 2), (2, 5)])
    assert token_spans(encoding, "abcd ", [(2, 4)]) == [(1, 2)]
    assert token_spans(encoding, "abcde", [(2, 4)]) == [(1, 1)]
