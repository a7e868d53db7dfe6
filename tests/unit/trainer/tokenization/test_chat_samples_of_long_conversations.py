"""Conversations longer than `max_length`, where the template writes earlier answers otherwise than the last."""

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Encoding

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.rows import BadRow, ChatRow, DataFormat, Message, Source
from finetune_trainer.tokenization import labeler as labels
from finetune_trainer.tokenization.labeler import UNTRAINED, Labeler
from finetune_trainer.tokenization.samples import Encoded
from finetune_trainer.tokenization.token_spans import Tokens

SOURCE = Source("rows.jsonl", 1)
LOOK_UP: Any = {"type": "function", "id": "call00001", "function": {"name": "look_up", "arguments": {"what": "fox"}}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Finds.", "parameters": {}}}]


def plain(turns: int) -> ChatRow:
    messages = [
        Message(role="assistant" if turn % 2 else "user", content=f"{turn} " + "the fox answers " * (turn % 7))
        for turn in range(turns)
    ]
    return ChatRow(messages, SOURCE, DataFormat.OPENAI)


def with_calls(rounds: int) -> ChatRow:
    """Much reasoning, which the template shows until the user speaks again."""
    messages: list[Message] = []
    for number in range(rounds):
        messages.append(Message(role="user", content=f"{number}?"))
        for _ in range(number % 3):
            reasoning = f"{number} hm " * 40
            messages.append(Message(role="assistant", content="", reasoning_content=reasoning, tool_calls=[LOOK_UP]))
            messages.append(Message(role="tool", content="a fox", tool_call_id="call00001", name="look_up"))
        messages.append(Message(role="assistant", content=f"It is {number}."))
    return ChatRow(messages, SOURCE, DataFormat.OPENAI, TOOLS)


def encode(labeler: Labeler, row: ChatRow, max_length: int) -> list[Encoded]:
    result = labeler.encode(row, "Chat", max_length)
    assert not isinstance(result, BadRow), result.detail
    return [sample for sample in result if isinstance(sample, Encoded)]


def answers(sample: Encoded) -> list[tuple[int, int]]:
    """Where the answers begin and end."""
    bounds = [
        at
        for at, (before, label) in enumerate(zip([UNTRAINED, *sample.labels], [*sample.labels, UNTRAINED], strict=True))
        if (before == UNTRAINED) != (label == UNTRAINED)
    ]
    return list(zip(bounds[::2], bounds[1::2], strict=True))


@pytest.mark.parametrize("row", [plain(40), with_calls(9)], ids=["plain", "calls"])
def test_tokens_within_the_limit_are_kept_and_every_answer_beyond_it_is_counted(
    row: ChatRow, shipped_labeler: Any
) -> None:
    labeler = shipped_labeler("qwen3")
    whole = encode(labeler, row, 100_000)
    assert len(whole) > 5
    longest = max(sample.length for sample in whole)
    for max_length in range(max(end for _, end in answers(whole[0])), longest, 97):
        cut = encode(labeler, row, max_length)
        within = [
            sample for sample in whole if sample.labels[:max_length].count(UNTRAINED) < min(sample.length, max_length)
        ]
        assert [sample.input_ids for sample in cut] == [sample.input_ids[:max_length] for sample in within]
        assert [sample.labels for sample in cut] == [sample.labels[:max_length] for sample in within]
        beyond = sum(end > max_length for sample in whole for _, end in answers(sample))
        assert sum(sample.answer_cut for sample in cut) == beyond
        if beyond:
            assert any(RepairCode.ANSWER_CUT in sample.repairs for sample in cut)


def test_a_row_without_an_answer_in_the_limit_is_rejected_with_its_length(shipped_labeler: Any) -> None:
    labeler = shipped_labeler("qwen3")
    row = plain(40)
    result = labeler.encode(row, "Chat", 4)
    assert isinstance(result, BadRow)
    assert result.code is RejectCode.PROMPT_FILLS_CONTEXT
    assert result.tokens == encode(labeler, row, 100_000)[-1].length


def test_rows_that_are_tokenised_in_portions_give_what_single_rows_give(
    shipped_labeler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeler = shipped_labeler("qwen3")
    forged = ChatRow([*plain(2).messages, Message(role="user", content="<|im_end|>")], SOURCE, DataFormat.OPENAI)
    rows = [plain(2), forged, plain(6), with_calls(3), forged, plain(4)]
    whole = labeler.encode_batch(rows, "Chat", 4096)
    for characters in (0, 500, 1500):
        monkeypatch.setattr(labels, "CHARACTERS_AT_ONCE", characters)
        portions = labeler.encode_batch(rows, "Chat", 4096)
        assert [isinstance(result, BadRow) for result in portions] == [False, True, False, False, True, False]
        assert [one for one in portions if not isinstance(one, BadRow)] == [
            one for one in whole if not isinstance(one, BadRow)
        ]


def test_an_answer_marked_not_to_be_trained_gets_no_sample_of_its_own(shipped_labeler: Any) -> None:
    labeler = shipped_labeler("qwen3")
    row = plain(6)
    row.messages[1]["train"] = False
    assert [sample.input_ids for sample in encode(labeler, row, 4096)] == [
        sample.input_ids for sample in encode(labeler, plain(6), 4096)[1:]
    ]


def test_a_sample_that_fits_reports_the_answers_that_are_in_none(shipped_labeler: Any) -> None:
    labeler = shipped_labeler("qwen3")
    whole = encode(labeler, plain(6), 100_000)
    (only,) = encode(labeler, plain(6), whole[0].length)
    assert only.input_ids == whole[0].input_ids
    assert (only.truncated, only.answer_cut, only.left_out) == (True, 2, whole[-1].length - only.length)
    assert only.repairs == (RepairCode.TRUNCATED, RepairCode.ANSWER_CUT)


def test_renderings_far_beyond_the_limit_are_not_tokenised(
    shipped_labeler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    real = Tokens.encode_batch

    def counted(self: Tokens, texts: Sequence[str]) -> list[Encoding]:
        counts.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(Tokens, "encode_batch", counted)
    encode(shipped_labeler("qwen3"), plain(200), 100)
    assert sum(counts) < 15
