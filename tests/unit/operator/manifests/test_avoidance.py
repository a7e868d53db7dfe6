"""The affinity of an attempt that avoids nodes."""

import pytest

from finetune_api.runs import Run
from finetune_api.status import FineTuneJobStatus
from finetune_operator.manifests.avoidance import avoid_nodes, find_doubtful_node, place_elsewhere
from finetune_operator.settings import Settings

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def field(node: str) -> dict[str, object]:
    return {"key": "metadata.name", "operator": "NotIn", "values": [node]}


def test_without_an_affinity_of_the_job_there_is_one_term() -> None:
    made = avoid_nodes(None, ["a", "b"])
    assert made == {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchFields": [field("a"), field("b")]}]}}}


def test_each_term_of_the_job_excludes_the_nodes_because_one_of_them_has_to_match() -> None:
    terms = [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}, {"matchFields": [field("c")]}]
    given = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}, PREFERRED: ["kept"]}, "podAffinity": {"kept": 1}}
    made = avoid_nodes(given, ["a"])
    assert made["podAffinity"] == {"kept": 1}
    assert made["nodeAffinity"][PREFERRED] == ["kept"]
    assert made["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] == [
        {**terms[0], "matchFields": [field("a")]},
        {"matchFields": [field("c"), field("a")]},
    ]
    assert terms[1] == {"matchFields": [field("c")]}


def ended(*runs: tuple[str, str | None]) -> FineTuneJobStatus:
    """A status with runs of these results on these nodes; `Rejected` is a pod that its node refused."""
    history = [
        Run(
            run=number,
            attempt=1,
            pod_name=f"one-1-{number}",
            pod_uid=f"uid-{number}",
            node_name=node,
            result="Preempted" if result == "Rejected" else result,
            reason="PodRejected" if result == "Rejected" else "InternalError",
        )
        for number, (result, node) in enumerate(runs, start=1)
    ]
    return FineTuneJobStatus(history=history)


@pytest.mark.parametrize(("first", "last"), [("Failed", "Failed"), ("Rejected", "Failed"), ("Rejected", "Rejected")])
def test_a_node_that_ended_the_last_two_runs_is_doubtful(first: str, last: str) -> None:
    assert find_doubtful_node(ended(("Succeeded", "b"), (first, "a"), (last, "a"))) == "a"


@pytest.mark.parametrize("other", ["Preempted", "Suspended", "Succeeded"])
def test_one_failure_does_not_make_a_node_doubtful(other: str) -> None:
    assert find_doubtful_node(ended((other, "a"), ("Failed", "a"))) is None
    assert find_doubtful_node(ended(("Failed", "a"), (other, "a"))) is None
    assert find_doubtful_node(ended(("Failed", "a"))) is None


def test_another_run_between_two_failures_breaks_the_succession() -> None:
    assert find_doubtful_node(ended(("Failed", "a"), ("Preempted", "a"), ("Failed", "a"))) is None


def test_failures_on_two_nodes_or_on_an_unknown_one_make_none_doubtful() -> None:
    assert find_doubtful_node(ended(("Failed", "a"), ("Failed", "b"))) is None
    assert find_doubtful_node(ended(("Failed", None), ("Failed", None))) is None


@pytest.mark.parametrize(
    ("avoidance", "required", "preferred"),
    [("Required", [["broken"]], [["doubtful"]]), ("Preferred", [], [["broken"], ["doubtful"]]), ("Off", [], [])],
)
def test_the_platform_decides_how_firmly_nodes_are_left_out(
    avoidance: str, required: list[list[str]], preferred: list[list[str]]
) -> None:
    status = ended(("Failed", "doubtful"), ("Failed", "doubtful"))
    status.avoided_node_names = ["broken"]
    settings = Settings(trainer_image="a", node_avoidance=avoidance)  # type: ignore[arg-type]
    found = (place_elsewhere(None, status, settings) or {}).get("nodeAffinity", {})
    terms = found.get(REQUIRED, {}).get("nodeSelectorTerms", [])
    wanted = [one["preference"] for one in found.get(PREFERRED, [])]
    assert [[field["values"][0] for field in one["matchFields"]] for one in terms] == required
    assert [[field["values"][0] for field in one["matchFields"]] for one in wanted] == preferred
