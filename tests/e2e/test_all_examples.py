"""The examples that test_examples.py leaves out: a blend, the other objectives, and chains of three jobs."""

from typing import Any

import examples
import pytest
from user import Bench

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def jobs(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    endpoint = examples.upload(bench, tmp_path_factory.mktemp("hub") / "model")
    return examples.run(bench, endpoint, examples.OTHERS)


def test_every_job_completes_and_improves(jobs: dict[str, dict[str, Any]]) -> None:
    examples.require_improvement(jobs)


def test_a_reward_model_starts_after_its_parent_and_names_its_manifest(jobs: dict[str, dict[str, Any]]) -> None:
    lineage = jobs["reward"]["lineage"]
    assert lineage["parent"]["name"] == "policy-sft"
    assert lineage["parent"]["manifestSHA256"] == jobs["policy-sft"]["artifacts"]["manifestSHA256"]
    assert jobs["reward"]["startTime"] >= jobs["policy-sft"]["completionTime"]


def test_rlhf_names_both_jobs_that_it_builds_on(jobs: dict[str, dict[str, Any]]) -> None:
    lineage = jobs["policy-rlhf"]["lineage"]
    assert (lineage["parent"]["name"], lineage["rewardJob"]["name"]) == ("policy-sft", "reward")


def test_columns_are_renamed(jobs: dict[str, dict[str, Any]]) -> None:
    assert jobs["support-answers"]["dataset"]["acceptedRows"] == 200


def test_answers_to_held_out_rows_are_counted(jobs: dict[str, dict[str, Any]]) -> None:
    evaluation = jobs["ticket-classes"]["evaluation"]
    assert evaluation["answers"]["rows"] == jobs["ticket-classes"]["dataset"]["validationRows"]
    assert evaluation["gate"] == "Passed"


def test_a_chain_of_three_jobs_is_verified_back_to_its_base(jobs: dict[str, dict[str, Any]]) -> None:
    assert examples.verify(jobs["policy-rlhf"]["artifacts"]["uri"]) == ["base", "parent", "reward job"]


def test_a_blend_has_its_proportions_by_trained_tokens(jobs: dict[str, dict[str, Any]]) -> None:
    sources = jobs["blend"]["dataset"]["sources"]
    total = sum(one["trainedTokens"] for one in sources)
    assert [one["trainedTokens"] / total for one in sources] == pytest.approx([0.5, 0.25, 0.25], abs=0.02)
    assert sources[1]["rejectedRowsByCode"] == {"DUPLICATE": 200}
