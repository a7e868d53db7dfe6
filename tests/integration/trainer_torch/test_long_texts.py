"""Rows longer than `maxLength`, trained for real: the report about them, and the effect of following its advice."""

from collections.abc import Callable

import pytest
from training_bench import HYPERPARAMETERS, Bench, make_rows

from finetune_api.handoff import Report

MakeBench = Callable[..., Bench]
LIMIT = 64
ROWS, LONG = 200, 20


def long_conversations() -> list[dict[str, object]]:
    """One row in ten has three questions before the one that the others ask alone."""
    rows = make_rows(ROWS)
    for number in range(0, ROWS, 10):
        earlier = [turn for row in make_rows(ROWS + 3)[ROWS:] for turn in row["messages"]]  # type: ignore[attr-defined]
        rows[number] = {"messages": [*earlier, *rows[number]["messages"]]}  # type: ignore[misc]
    return rows


def long_documents() -> list[dict[str, object]]:
    """Return texts of which one in ten is long."""
    return [
        {"text": f"The sky is blue {number}." + " So is the sea." * (9 * (number % 10 == 0))} for number in range(ROWS)
    ]


def trained(make_bench: MakeBench, objective: str, rows: list[dict[str, object]], limit: int) -> tuple[Bench, Report]:
    bench = make_bench(objective=objective, hyperparameters=HYPERPARAMETERS | {"maxLength": limit, "maxSteps": 4})
    bench.rows = rows
    return bench, bench.run()


def report_of(bench: Bench) -> str:
    return (bench.output / "finetune_report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("objective", "accepted", "truncated", "message"),
    [
        ("Chat", ROWS, LONG, "which leaves 99 % of the rows whole"),
        pytest.param(
            "Instruction", ROWS - LONG, 0, "rows whose prompt alone fills it are skipped", marks=pytest.mark.nightly
        ),
    ],
)
def test_truncation_is_reported_and_the_advised_length_keeps_every_row_whole(
    make_bench: MakeBench, objective: str, accepted: int, truncated: int, message: str
) -> None:
    """Where only the last answer is trained, a row that is cut before it has nothing to teach."""
    bench, report = trained(make_bench, objective, long_conversations(), LIMIT)
    assert report.dataset
    assert (report.dataset.accepted_rows, report.dataset.truncated_rows) == (accepted, truncated)
    assert (report.dataset.repaired_rows_by_code or {}).get("TRUNCATED", 0) == truncated
    assert report.dataset.p99_length_tokens is not None
    advised = -(-report.dataset.p99_length_tokens // 64) * 64
    text = report_of(bench)
    assert f"Raise hyperparameters.maxLength to {advised}" in text
    assert message in text
    assert ("0 % of the training rows were truncated" in text) is (truncated == 0)
    bench, report = trained(make_bench, objective, long_conversations(), advised)
    assert report.dataset
    assert (report.dataset.accepted_rows, report.dataset.truncated_rows) == (ROWS, 0)
    assert "Raise hyperparameters.maxLength" not in report_of(bench)


def test_long_documents_are_split_and_nothing_of_them_is_lost(make_bench: MakeBench) -> None:
    bench, report = trained(make_bench, "DomainAdaptation", long_documents(), LIMIT)
    assert report.dataset
    assert (report.dataset.accepted_rows, report.dataset.truncated_rows) == (ROWS, 0)
    assert (report.dataset.repaired_rows_by_code or {})["DOCUMENT_SPLIT"] == LONG
    assert "`DOCUMENT_SPLIT`" in report_of(bench)
    assert report.evaluation
    assert report.evaluation.rows == report.dataset.validation_rows


def test_an_answer_that_reaches_beyond_the_limit_is_counted_apart(make_bench: MakeBench) -> None:
    rows = make_rows(ROWS)
    for number in range(0, ROWS, 10):
        rows[number] = {"prompt": f"Why {number}?", "completion": "The sky is blue and so is the sea. " * 9}
    bench, report = trained(make_bench, "Instruction", rows, LIMIT)
    assert report.dataset
    assert (report.dataset.repaired_rows_by_code or {})["ANSWER_CUT"] == LONG
    assert "`ANSWER_CUT`" in report_of(bench)
