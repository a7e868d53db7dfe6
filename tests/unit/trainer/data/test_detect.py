import pytest

from finetune_trainer.data.detect import detect_format, rename_columns
from finetune_trainer.data.rows import BadRow, DataFormat, RejectCode

TURN = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [TURN]}, DataFormat.OPENAI),
        ({"conversations": [TURN]}, DataFormat.OPENAI),
        ({"messages": []}, DataFormat.OPENAI),
        ({"messages": '[{"role": "user", "content": "hi"}]'}, DataFormat.OPENAI),
        ({"conversations": [{"from": "human", "value": "hi"}]}, DataFormat.SHAREGPT),
        ({"messages": [{"from": "human", "value": "hi"}]}, DataFormat.SHAREGPT),
        ({"dialogue": [{"speaker": "human", "text": "hi"}]}, DataFormat.SHAREGPT),
        ({"chat": "[{'from': 'human', 'value': 'the role of content'}]"}, DataFormat.SHAREGPT),
        ({"instruction": "a", "output": "b"}, DataFormat.ALPACA),
        ({"question": "a", "context": "c", "answer": "b"}, DataFormat.ALPACA),
        ({"input": "a", "output": "b"}, DataFormat.ALPACA),
        ({"prompt": "a", "completion": "b"}, DataFormat.ALPACA),
        ({"messages": [TURN], "instruction": "a", "output": "b"}, DataFormat.OPENAI),
    ],
)
def test_a_format_is_told_by_its_columns(row: dict[str, object], expected: DataFormat) -> None:
    assert detect_format(row) is expected


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"a": 1, "b": 2},
        {"instruction": "a"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "completion": "b", "label": False},
        {"messages": [TURN], "kto_tag": True},
    ],
)
def test_rows_of_no_chat_format_are_refused_with_the_columns_seen(row: dict[str, object]) -> None:
    with pytest.raises(BadRow) as bad:
        detect_format(row)
    assert bad.value.code is RejectCode.UNKNOWN_FORMAT
    assert all(column in bad.value.detail for column in row)


def test_a_mapped_column_wins_over_everything_that_means_the_same() -> None:
    row = {"instruction": "old", "prompt": "older", "q": "new", "a": "answer", "other": 1}
    assert rename_columns(row, {"prompt": "q", "completion": "a"}) == {
        "prompt": "new",
        "completion": "answer",
        "other": 1,
    }


def test_columns_that_swap_their_names_are_swapped() -> None:
    assert rename_columns({"input": "i", "output": "o"}, {"output": "input", "instruction": "output"}) == {
        "output": "i",
        "instruction": "o",
    }


def test_a_mapped_column_that_a_row_lacks_leaves_the_row_as_it_is() -> None:
    assert rename_columns({"instruction": "i", "output": "o"}, {"prompt": "q"}) == {"instruction": "i", "output": "o"}
