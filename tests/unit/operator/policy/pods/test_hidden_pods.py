"""Which Jobs have pods that no list shows: by what the Job controller counts."""

from typing import Any

import pytest

from finetune_operator.policy.pods import hidden_pods


@pytest.mark.parametrize(
    ("pod_version", "are_missing"),
    [("11", False), ("9", True)],
    ids=["ended after the Job controller looked", "ended before, so that it counts another pod"],
)
def test_an_ended_pod_is_the_one_that_the_job_controller_counts_only_if_it_is_newer(
    scene: Any, pod_version: str, are_missing: bool
) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.end(pod, 0, one.published())
    pod["metadata"]["resourceVersion"] = pod_version
    one.children["one-1"]["metadata"]["resourceVersion"] = "10"
    one.children["one-1"]["status"] = {"active": 1}
    assert hidden_pods.are_missing(one.observe()) is are_missing


def test_a_job_with_more_pods_than_are_shown_has_hidden_ones(scene: Any) -> None:
    one = scene().to_training()
    one.children["one-1"]["status"] = {"active": 1}
    assert hidden_pods.are_missing(one.observe())
    one.run(one.pod("one-1"))
    assert not hidden_pods.are_missing(one.observe())
