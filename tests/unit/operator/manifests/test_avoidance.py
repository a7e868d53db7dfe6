"""The affinity of an attempt that avoids nodes."""

from finetune_operator.manifests.avoidance import avoid_nodes

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
