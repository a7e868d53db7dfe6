import pytest

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.column_map import ColumnMap
from finetune_trainer.data.formats.columns import name_columns
from finetune_trainer.data.formats.detect import detect_format
from finetune_trainer.data.rows import BadRow, DataFormat

TURN = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [TURN]}, DataFormat.OPENAI),
        ({"conversations": [TURN]}, DataFormat.OPENAI),
        ({"messages": []}, DataFormat.OPENAI),
        ({"conversations": [{"role": "user"}]}, DataFormat.OPENAI),
        ({"conversations": [{"content": "hi"}]}, DataFormat.OPENAI),
        ({"conversations": [{"content": "hi", "from": "human"}]}, DataFormat.SHAREGPT),
        ({"messages": '[{"role": "user", "content": "hi"}]'}, DataFormat.OPENAI),
        ({"conversations": [{"from": "human", "value": "hi"}]}, DataFormat.SHAREGPT),
        ({"messages": [{"from": "human", "value": "hi"}]}, DataFormat.SHAREGPT),
        ({"dialogue": [{"speaker": "human", "text": "hi"}]}, DataFormat.SHAREGPT),
        ({"chat": "[{'from': 'human', 'value': 'the role of content'}]"}, DataFormat.SHAREGPT),
        ({"instruction": "a", "output": "b"}, DataFormat.ALPACA),
        ({"question": "a", "context": "c", "answer": "b"}, DataFormat.ALPACA),
        ({"input": "a", "output": "b"}, DataFormat.ALPACA),
        ({"messages": [TURN], "instruction": "a", "output": "b"}, DataFormat.OPENAI),
        ({"prompt": "a", "completion": "b"}, DataFormat.PROMPT_COMPLETION),
        ({"prompt": [TURN], "response": "b"}, DataFormat.PROMPT_COMPLETION),
        ({"prompt": "a", "input": "c", "completion": "b"}, DataFormat.ALPACA),
        ({"instruction": "a", "output": "b", "text": "### a b"}, DataFormat.ALPACA),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, DataFormat.PREFERENCE),
        ({"chosen": [TURN], "rejected": [TURN], "messages": [TURN], "prompt": "a"}, DataFormat.PREFERENCE),
        ({"messages": [TURN], "rejected_response": "b"}, DataFormat.PREFERENCE),
        ({"input": {"messages": [TURN]}, "preferred_output": [], "non_preferred_output": []}, DataFormat.PREFERENCE),
        ({"instruction": "a", "output": ["b", "c"]}, DataFormat.PREFERENCE),
        ({"prompt": "a", "completion": "b", "label": False}, DataFormat.UNPAIRED),
        ({"messages": [TURN], "kto_tag": True}, DataFormat.UNPAIRED),
        ({"text": "a", "label": 3}, DataFormat.TEXT),
        ({"text": "a"}, DataFormat.TEXT),
        ({"prompt": "a"}, DataFormat.PROMPT_COMPLETION),
        ({"instruction": "a"}, DataFormat.ALPACA),
    ],
)
def test_a_format_is_detected_by_its_columns(row: dict[str, object], expected: DataFormat) -> None:
    assert detect_format(row) is expected


@pytest.mark.parametrize("row", [{}, {"a": 1, "b": 2}, {"label": True}, {"output": "a"}])
def test_rows_of_no_format_are_refused(row: dict[str, object]) -> None:
    with pytest.raises(BadRow) as bad:
        detect_format(row)
    assert bad.value.code is RejectCode.UNKNOWN_FORMAT


def test_a_wide_table_is_not_named_column_by_column() -> None:
    assert name_columns(f"c{number}" for number in range(500)).endswith("c10, c11 and 488 more")


def test_a_mapped_column_wins_over_everything_that_means_the_same() -> None:
    row = {"instruction": "old", "prompt": "older", "q": "new", "a": "answer", "other": 1}
    assert ColumnMap({"prompt": "q", "completion": "a"}).rename(row) == {
        "prompt": "new",
        "completion": "answer",
        "other": 1,
    }


def test_columns_that_swap_their_names_are_swapped() -> None:
    assert ColumnMap({"output": "input", "instruction": "output"}).rename({"input": "i", "output": "o"}) == {
        "output": "i",
        "instruction": "o",
    }


def test_a_mapped_column_that_a_row_lacks_leaves_the_row_as_it_is() -> None:
    assert ColumnMap({"prompt": "q"}).rename({"instruction": "i", "output": "o"}) == {"instruction": "i", "output": "o"}
