from typing import Any

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_api.dataset.columns import COLUMN_NAMES
from finetune_trainer.data.checks.summary import Summary, explain_unusable, name_unknown_columns
from finetune_trainer.data.formats.column_map import ColumnMap
from finetune_trainer.data.formats.columns import KNOWN_COLUMNS, TURN_KEYS
from finetune_trainer.data.rows import DataFormat, Rejected, Source, TextRow
from finetune_trainer.tokenization.samples import Encoded


def test_a_row_counts_with_the_longest_of_its_samples_before_truncation() -> None:
    samples = (Encoded([1] * 8, [1] * 8, 8, left_out=2), Encoded([1] * 3, [1] * 3, 3, left_out=9))
    summary = Summary()
    summary.count(TextRow("t", Source("f", 1), DataFormat.TEXT, encodings=samples))
    assert summary.lengths.longest == 12
    assert (summary.samples, summary.tokens, summary.trained_tokens) == (2, 11, 11)


def rejected(code: RejectCode, file: str = "f", detail: str = "why") -> Rejected:
    return Rejected(file, 1, code, detail, "")


def summary_of(*rows: Any) -> Summary:
    summary = Summary()
    for row in rows:
        summary.count(row)
    return summary


def text(file: str = "f", *repairs: RepairCode) -> TextRow:
    return TextRow("t", Source(file, 1), DataFormat.TEXT, repairs=repairs)


def test_rows_are_counted_for_each_file_with_the_most_frequent_code_first() -> None:
    bad, other = rejected(RejectCode.BAD_JSON, "b"), rejected(RejectCode.DUPLICATE, "b")
    summary = Summary()
    summary.start_file("empty")
    for row in (text("a"), text("a", RepairCode.COERCED_SCALAR), other, bad, bad):
        summary.count(row)
    counts = summary.to_dict()
    assert counts["files"] == [
        {"file": "empty", "rows": 0, "acceptedRows": 0, "rejectedRowsByCode": {}},
        {"file": "a", "rows": 2, "acceptedRows": 2, "rejectedRowsByCode": {}},
        {"file": "b", "rows": 3, "acceptedRows": 0, "rejectedRowsByCode": {"BAD_JSON": 2, "DUPLICATE": 1}},
    ]
    assert list(counts["files"][2]["rejectedRowsByCode"]) == ["BAD_JSON", "DUPLICATE"]
    assert (counts["rows"], counts["acceptedRows"], counts["repairedRows"], counts["rejectedRows"]) == (5, 2, 1, 3)
    assert (counts["malformedRows"], counts["repairedRowsByCode"]) == (2, {"COERCED_SCALAR": 1})


def test_what_was_not_tokenized_has_no_number_of_tokens() -> None:
    tokenizers = {"samples", "tokens", "trainedTokens", "answersCut", "reasoningLost", "lengths"}
    assert not tokenizers & summary_of(text("a"), rejected(RejectCode.BAD_JSON)).to_dict().keys()
    too_long = Rejected("f", 1, RejectCode.PROMPT_FILLS_CONTEXT, "", "", 9)
    assert tokenizers <= summary_of(too_long).to_dict().keys()


def test_the_losses_of_every_sample_are_added_up() -> None:
    samples = tuple(Encoded([1], [1], 1, answer_cut=2, reasoning_lost=3) for _ in range(2))
    summary = summary_of(TextRow("t", Source("f", 1), DataFormat.TEXT, encodings=samples))
    assert (summary.answers_cut, summary.reasoning_lost) == (4, 6)


def test_a_rejected_row_counts_in_the_lengths_only_if_its_length_is_known() -> None:
    summary = summary_of(rejected(RejectCode.BAD_JSON), Rejected("f", 1, RejectCode.PROMPT_FILLS_CONTEXT, "", "", 9))
    assert summary.lengths.rows == {9: 1}


def test_no_rows_are_unusable() -> None:
    assert explain_unusable(Summary(), 100) == "there are no rows"


def test_columns_that_no_row_has_are_unusable_and_named_with_those_that_are_there() -> None:
    summary = summary_of(text())
    summary.columns = ColumnMap({"prompt": "q", "completion": "a"})
    assert explain_unusable(summary, 0) is None
    summary.columns.rename({"a": 1, "text": "t"})
    expected = "dataset.columns names prompt as 'q', which no row has; columns found: a, text"
    assert explain_unusable(summary, 100) == expected


def test_rows_of_which_none_is_accepted_are_unusable_whatever_the_limit() -> None:
    unfit = rejected(RejectCode.NOT_FOR_OBJECTIVE)
    assert explain_unusable(summary_of(rejected(RejectCode.BAD_JSON), unfit), 100) == "none of the 2 rows can be used"
    assert explain_unusable(summary_of(unfit), 100) == "none of the 1 rows fits the objective: why"
    other = rejected(RejectCode.NOT_FOR_OBJECTIVE, detail="else")
    assert explain_unusable(summary_of(other, unfit, unfit), 100) == (
        "none of the 3 rows fits the objective: why (2 rows)"
    )


def test_malformed_rows_are_unusable_above_the_limit() -> None:
    summary = summary_of(text(), rejected(RejectCode.BAD_JSON), text(), rejected(RejectCode.NOT_FOR_OBJECTIVE))
    assert explain_unusable(summary, 50) is None
    assert explain_unusable(summary, 49) == (
        "2 of 4 rows are malformed (50.0 %, 1 of them do not fit the objective, dataset.maxRejectedPercent is 49)"
    )
    only_bad = summary_of(text(), rejected(RejectCode.BAD_JSON))
    assert explain_unusable(only_bad, 0) == "1 of 2 rows are malformed (50.0 %, dataset.maxRejectedPercent is 0)"
    almost_all = summary_of(text(), *[rejected(RejectCode.BAD_JSON)] * 199)
    assert explain_unusable(almost_all, 99) is not None
    assert explain_unusable(almost_all, 100) is None


def test_columns_that_are_in_no_format_are_named_in_order() -> None:
    assert name_unknown_columns(frozenset({"prompt", "text"})) is None
    message = name_unknown_columns(frozenset({"prompt", "zebra", "ape"}))
    assert message is not None
    assert message.startswith(
        "spec.dataset.columns maps ape, zebra, which is in no format: the known names are messages,"
    )
    assert len(message) < 300


def test_a_column_that_is_almost_a_known_one_is_corrected() -> None:
    message = name_unknown_columns(frozenset({"promt", "completion"}), "dataset.train.sources[1].columns")
    assert message == ("spec.dataset.train.sources[1].columns maps promt, which is in no format: did you mean prompt?")


def test_the_names_of_the_api_are_those_that_the_formats_read() -> None:
    assert KNOWN_COLUMNS | TURN_KEYS == COLUMN_NAMES
    assert name_unknown_columns(COLUMN_NAMES) is None
