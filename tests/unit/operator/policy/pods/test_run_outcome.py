"""How an ended pod counts: which reports are trusted, and what an exit code means without one."""

from typing import Any

import pytest


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[]",
        '"Published"',
        '{"outcome": "Published"}',
        "x" * 5000,
        '{"a":' * 900,
    ],
)
def test_a_completed_job_without_a_valid_report_is_not_a_success(scene: Any, message: str) -> None:
    one = scene(backoffLimit=0).to_training()
    one.end(one.pod("one-1"), 0, message)
    one.complete("one-1")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert one.condition("Published")["status"] == "False"


@pytest.mark.parametrize(
    "forged",
    [
        {"jobUID": "another"},
        {"configSHA256": "0" * 64},
        {"artifacts": {"uri": "s3://bucket/out"}},
        *({"artifacts": {"uri": "s3://bucket/out", "manifestSHA256": text}} for text in ("", "x", "AB" * 32, "a" * 65)),
        {"metrics": {"evalLoss": "NaN"}},
        {"outcome": "Validated"},
    ],
)
def test_a_report_that_does_not_prove_this_jobs_result_is_not_a_success(scene: Any, forged: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    artifacts = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
    one.end(one.pod("one-1"), 0, one.report("Published", **{"artifacts": artifacts} | forged))
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Failed"


def test_infinity_in_a_report_is_refused(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    message = one.published().replace('"message"', '"metrics": {"evalLoss": 1e999}, "message"')
    one.end(one.pod("one-1"), 0, message)
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Failed"


def test_a_pod_of_another_controller_proves_nothing(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    foreign = one.pod("one-1", "forger")
    foreign["metadata"]["ownerReferences"][0]["uid"] = "somebody-else"
    one.end(foreign, 0, one.published())
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Failed"
