"""Which decisions need a live read."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from finetune_api.status import FineTuneJobStatus, Progress
from finetune_operator.controller.progress_budget import REPORTED
from finetune_operator.policy.finality import CORRECTABLE, is_final

Build = Callable[..., Any]


def test_the_fields_that_are_corrected_exist() -> None:
    assert set(FineTuneJobStatus.model_fields) >= CORRECTABLE | set(REPORTED)


def test_an_action_an_end_and_a_count_are_final(scene: Build) -> None:
    one = scene()
    one.to_training()
    job, quiet = one.job, one.look()
    assert not is_final(job.status, quiet)
    counted = replace(quiet, status=quiet.status.model_copy(update={"failures": 1}))
    assert is_final(job.status, counted)
    one.end(one.pod("one-1"), 0, one.published())
    one.complete("one-1")
    assert is_final(job.status, one.look())


def test_the_first_preflight_is_created_without_a_live_read_and_everything_after_it_with_one(scene: Build) -> None:
    one = scene()
    first = one.look()
    assert first.create
    assert not is_final(one.job.status, first)
    one.settle()
    again = one.look(children=())
    assert again.create
    assert is_final(one.job.status, again)
    one.end(one.pod("one-preflight"), 0, one.report("Validated", dataset={"rows": 5, "acceptedRows": 5}))
    one.complete("one-preflight")
    attempt = one.look()
    assert attempt.create
    assert is_final(one.job.status, attempt)


def test_a_first_attempt_without_preflight_needs_a_live_read(scene: Build) -> None:
    one = scene(preflight={"enabled": False})
    attempt = one.look()
    assert attempt.create
    assert is_final(one.job.status, attempt)


def test_progress_and_the_words_of_a_condition_are_not_final(scene: Build) -> None:
    one = scene().to_training()
    quiet = one.look()
    changed = quiet.status.model_copy(update={"progress": Progress(step=5), "message": "words"})
    assert not is_final(one.job.status, replace(quiet, status=changed))
