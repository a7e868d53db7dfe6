from collections.abc import Callable
from typing import Any

import pytest

from finetune_client.cluster.job import Job
from kubectl_finetune.commands import lineage

Make = Callable[..., Job]
Printed = Callable[..., str]
PARENT = {
    "name": "sft",
    "uid": "uid-sft",
    "objective": "Chat",
    "outputURI": "s3://b/sft",
    "manifestSHA256": "cd" * 32,
}


def test_a_tree_names_output_rows_manifest_and_trainer_of_each_job(job: Make, printed: Printed) -> None:
    child = job(
        spec={"lineage": {"parentRef": {"name": "sft"}}},
        artifacts={"uri": "s3://b/published", "manifestSHA256": "ef" * 32},
        lineage={"parent": PARENT, "datasetSHA256": "12" * 32, "trainerImage": "trainer:1", "baseModelURI": "hf://o/m"},
    )
    there = {"sft": job("sft", lineage={"baseModelURI": "hf://owner/model", "baseModelRevision": "abc"})}
    lines = printed(lineage.tree(lineage.origin_record(child, there.get))).splitlines()
    assert [line.strip("│├└─ ") for line in lines] == [
        "one Chat Training  s3://b/published",
        f"rows {'12' * 32}",
        f"manifest {'ef' * 32}",
        "trainer trainer:1",
        "parent: sft Chat Training  s3://b/out",
        "base model: hf://owner/model@abc",
    ]


def test_a_tree_names_the_teacher_and_the_adapter_that_the_training_began_with(job: Make, printed: Printed) -> None:
    spec = {
        "distillation": {"teacher": {"uri": "hf://owner/larger"}},
        "tuning": {"initialAdapter": {"uri": "s3://b/first"}},
    }
    found = lineage.origin_record(job(spec=spec, lineage={"teacherRevision": "abc"}), lambda _: None)
    assert (found["teacherURI"], found["initialAdapterURI"]) == ("hf://owner/larger", "s3://b/first")
    assert [line.strip("│├└─ ") for line in printed(lineage.tree(found)).splitlines()[1:]] == [
        "teacher: hf://owner/larger@abc",
        "initial adapter: s3://b/first",
        "base model: hf://owner/model",
    ]


@pytest.mark.parametrize("width", ["10", "80"])
def test_the_lines_of_a_tree_are_whole_however_narrow_the_output(
    front: Any, finetune: Callable[..., Any], job: Make, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    image = f"registry.example.com/a-long-path/finetune-trainer@sha256:{'ef' * 32}"
    front.answers["one"] = [(200, job(lineage={"trainerImage": image, "baseModelURI": "hf://o/m"}).raw)]
    done = finetune("lineage", "one", "--context", "lab")
    assert done.out == f"one Chat Training  s3://b/out\n├── trainer {image}\n└── base model: hf://o/m\n"


def test_an_ancestor_that_is_gone_or_replaced_is_what_the_status_recorded(job: Make, printed: Printed) -> None:
    child = job(spec={"lineage": {"parentRef": {"name": "sft"}}}, lineage={"parent": PARENT})
    gone = printed(lineage.tree(lineage.origin_record(child, lambda _: None)))
    assert "parent: sft Chat   s3://b/sft  (no longer in the cluster)" in gone
    replaced = job("sft")
    replaced.raw["metadata"]["uid"] = "another"
    tree = printed(lineage.tree(lineage.origin_record(child, {"sft": replaced}.get)))
    assert "s3://b/sft  (another job of this name is in the cluster now)" in tree


def test_an_ancestor_that_never_ran_has_its_name_alone(job: Make) -> None:
    child = job(spec={"rlhf": {"rewardModel": {"jobRef": {"name": "judge"}}}})
    found = lineage.origin_record(child, lambda _: None)
    assert found["rewardJob"] == {"name": "judge", "note": "not in the cluster"}
    assert found["outputURI"] == "s3://b/out"
    assert "parent" not in found
    assert "manifestSHA256" not in found


def test_jobs_that_are_each_others_parents_end(job: Make) -> None:
    loop = job("sft", spec={"lineage": {"parentRef": {"name": "sft"}}})
    found, depth = lineage.origin_record(loop, lambda _: loop), 0
    while "parent" in found:
        found, depth = found["parent"], depth + 1
    assert (depth, found["note"]) == (51, "not in the cluster")


def test_an_ancestor_of_parent_and_reward_model_is_read_once(
    front: Any, finetune: Callable[..., Any], job: Callable[..., Job]
) -> None:
    """Each round learns from the last one, and its reward model does so too: the paths double with each round."""
    last = {"parentRef": {"name": "round-0"}}
    front.answers["round-0"] = [(200, job("round-0").raw)]
    for number in range(1, 7):
        reward, name = f"reward-{number}", f"round-{number}"
        front.answers[reward] = [(200, job(reward, {"lineage": last}).raw)]
        spec = {"lineage": last, "rlhf": {"rewardModel": {"jobRef": {"name": reward}}}}
        front.answers[name] = [(200, job(name, spec).raw)]
        last = {"parentRef": {"name": name}}
    assert finetune("lineage", "round-6", "--context", "lab").code == 0
    assert len(front.requests) == 13
